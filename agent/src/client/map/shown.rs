//! Results as they are printed: of a map that runs here, and of one that is left to the cluster.

use std::{
    cell::RefCell,
    io::{self, Write as _},
    time::Duration,
};

use proto::v1::MapResult;

use super::result::{ItemView, ReduceView};
use crate::client::{
    Context,
    failure::{Failure, FailureKind},
    progress::Progress,
};

/// What was printed.
pub(in crate::client) struct Shown<'a> {
    context: &'a Context,
    pub progress: Progress,
    results: RefCell<Vec<ItemView>>,
}

impl<'a> Shown<'a> {
    /// Of so many items.
    pub fn new(context: &'a Context, items: u64) -> Self {
        Self {
            context,
            progress: Progress::things("mapping", items),
            results: RefCell::default(),
        }
    }

    /// Those that were printed.
    pub fn results(&self) -> Vec<ItemView> {
        self.results.borrow().clone()
    }

    /// Prints a result.
    pub fn show(&self, result: MapResult) -> Result<(), Failure> {
        let view = ItemView::from(result);
        self.progress.another();
        let shown = self.progress.aside(|| match self.context.for_people() {
            true => view.print(&mut io::stdout().lock(), &mut io::stderr().lock()),
            false => {
                let mut out = io::stdout().lock();
                serde_json::to_writer(&mut out, &view)?;
                out.write_all(b"\n")?;
                out.flush()
            }
        });
        self.results.borrow_mut().push(view);
        Ok(shown?)
    }

    /// Says how all went, and fails where one did.
    pub fn tell(&self, took: Duration) -> Result<(), Failure> {
        let results = self.results.borrow();
        let failed: Vec<&ItemView> = results.iter().filter(|one| !one.is_good()).collect();
        let repeated = results.iter().filter(|one| one.attempts > 1).count();
        if self.context.for_people() {
            self.progress.aside(|| {
                eprintln!(
                    "{} items in {:.1} s, {} failed, {repeated} repeated",
                    results.len(),
                    took.as_secs_f64(),
                    failed.len(),
                );
            });
        }
        let Some(first) = failed.iter().min_by_key(|one| one.index) else {
            return Ok(());
        };
        let first = format!("{}: {}", first.index, first.why());
        Err(items_failed(failed.len(), results.len(), &first))
    }

    /// Prints what came of the program that was run over all results, and ends as that did.
    pub fn show_reduced(&self, reduced: MapResult) -> Result<(), Failure> {
        let code = reduced.exit_code.unwrap_or_default();
        self.progress.aside(|| {
            let mut out = io::stdout().lock();
            if self.context.for_people() {
                out.write_all(&reduced.stdout)?;
                io::stderr().lock().write_all(&reduced.stderr)?;
            } else {
                serde_json::to_writer(&mut out, &ReduceView::from(reduced))?;
                out.write_all(b"\n")?;
            }
            out.flush()
        })?;
        ended_with(code)
    }
}

/// Some items failed; of the first, its number and why.
pub(in crate::client) fn items_failed(failed: usize, count: usize, first: &str) -> Failure {
    let message = format!("{failed} of {count} items failed, the first of them {first}");
    Failure::refused(message, "")
}

/// Ends as the program did that was run over all results.
pub(in crate::client) fn ended_with(code: u32) -> Result<(), Failure> {
    match u8::try_from(code).unwrap_or(u8::MAX) {
        0 => Ok(()),
        code => Err(Failure::new(FailureKind::Guest(code), "", "")),
    }
}
