//! Prints results: aligned columns, JSON or YAML.

use std::{
    borrow::Cow,
    io::{self, Write},
    iter,
};

use serde::Serialize;
use serde_norway::Value;

use super::{args::Format, units};

/// Something that can stand in a table.
pub trait Row {
    /// The columns' titles.
    fn header(wide: bool) -> Vec<&'static str>;
    /// The columns of this one, as many as the titles.
    fn cells(&self, wide: bool) -> Vec<String>;
    /// Whose it is, where it has an owner: a second column for who sees what several own.
    fn owner(&self) -> Option<&str> {
        None
    }
}

#[derive(Serialize)]
struct Items<'a, T> {
    items: &'a [T],
}

/// Prints a list: a table, or an object with `items`.
pub fn list<T: Serialize + Row>(
    to: &mut impl Write,
    format: Format,
    items: &[T],
) -> io::Result<()> {
    match format {
        Format::Table | Format::Wide => {
            let wide = format == Format::Wide;
            let mut header = T::header(wide);
            let mut rows: Vec<Vec<String>> = items.iter().map(|item| item.cells(wide)).collect();
            let first = items.first().and_then(Row::owner);
            if items.iter().any(|item| item.owner() != first) {
                header.insert(1, "OWNER");
                for (row, item) in rows.iter_mut().zip(items) {
                    row.insert(1, item.owner().unwrap_or_default().to_owned());
                }
            }
            table(to, &header, rows)
        }
        Format::Json | Format::Yaml => data(to, format, &Items { items }),
    }
}

/// Prints one object with all that is known of it: lines of a name and a value, or the object itself.
pub fn object<T: Serialize>(to: &mut impl Write, format: Format, object: &T) -> io::Result<()> {
    match format {
        Format::Table | Format::Wide => {
            // YAML's values keep the order of the fields, JSON's do not.
            let fields = serde_norway::to_value(object).map_err(io::Error::other)?;
            let mut lines = Vec::new();
            describe("", &fields, &mut lines);
            let width = lines
                .iter()
                .map(|(name, _)| name.chars().count())
                .max()
                .unwrap_or(0);
            for (name, value) in lines {
                writeln!(to, "{name:width$}  {}", printable(&value))?;
            }
            Ok(())
        }
        Format::Json | Format::Yaml => data(to, format, object),
    }
}

// What is printed is written at once: standard output writes each line by itself, and of ten thousand VMs there are many.

/// Prints an object as JSON or YAML.
pub fn data<T: Serialize>(to: &mut impl Write, format: Format, object: &T) -> io::Result<()> {
    match format {
        Format::Yaml => write!(
            to,
            "{}",
            serde_norway::to_string(object).map_err(io::Error::other)?
        ),
        _ => {
            let mut text = serde_json::to_vec_pretty(object)?;
            text.push(b'\n');
            to.write_all(&text)
        }
    }
}

/// Prints rows in aligned columns, two spaces apart.
pub fn table(to: &mut impl Write, header: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
    let header = header.iter().map(|&title| title.to_owned()).collect();
    let rows: Vec<Vec<String>> = iter::once(header).chain(rows).collect();
    let mut widths = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell_text(cell).chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut spaces = 0;
        for (cell, width) in row.iter().zip(&widths) {
            let cell = cell_text(cell);
            text.extend(iter::repeat_n(' ', spaces));
            text.push_str(&cell);
            spaces = width + 2 - cell.chars().count();
        }
        text.push('\n');
    }
    to.write_all(text.as_bytes())
}

fn cell_text(cell: &str) -> Cow<'_, str> {
    match cell.trim_end() {
        "" => "-".into(),
        cell => printable(cell),
    }
}

/// What comes from elsewhere must not command the terminal.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return text.into();
    }
    let instead = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(instead).collect()
}

fn describe(name: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let inner = |key: &str| {
        if name.is_empty() {
            key.to_owned()
        } else {
            format!("{name}.{key}")
        }
    };
    match value {
        Value::Mapping(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                describe(&inner(key.as_str().unwrap_or_default()), value, lines);
            }
        }
        Value::Sequence(items) if items.iter().any(Value::is_mapping) => {
            for (index, item) in items.iter().enumerate() {
                describe(&inner(&index.to_string()), item, lines);
            }
        }
        _ => lines.push((name.to_owned(), value_text(name, value))),
    }
}

fn value_text(name: &str, value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Number(number) => match number.as_u64() {
            Some(bytes) if name.ends_with("Bytes") => units::show_size(bytes),
            _ => number.to_string(),
        },
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Sequence(items) if !items.is_empty() => items
            .iter()
            .map(|item| value_text("", item))
            .collect::<Vec<_>>()
            .join(", "),
        Value::Tagged(tagged) => value_text(name, &tagged.value),
        Value::Null | Value::String(_) | Value::Sequence(_) | Value::Mapping(_) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Thing {
        name: &'static str,
        #[serde(rename = "memoryBytes")]
        memory: u64,
        tags: Vec<&'static str>,
        #[serde(skip)]
        owner: &'static str,
        inner: std::collections::BTreeMap<&'static str, bool>,
    }

    impl Row for Thing {
        fn header(wide: bool) -> Vec<&'static str> {
            if wide {
                vec!["NAME", "TAGS", "MEMORY"]
            } else {
                vec!["NAME", "TAGS"]
            }
        }
        fn cells(&self, wide: bool) -> Vec<String> {
            let mut cells = vec![self.name.to_owned(), self.tags.join(",")];
            if wide {
                cells.push(self.memory.to_string());
            }
            cells
        }
        fn owner(&self) -> Option<&str> {
            Some(self.owner)
        }
    }

    fn things() -> [Thing; 2] {
        let inner = std::collections::BTreeMap::from([("on", true)]);
        [
            Thing {
                name: "a",
                memory: 256 << 20,
                tags: vec!["x", "y"],
                owner: "ann",
                inner,
            },
            Thing {
                name: "long\x1b[0m",
                memory: 1,
                tags: vec![],
                owner: "ann",
                inner: Default::default(),
            },
        ]
    }

    fn text(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables() {
        assert_eq!(
            text(|out| list(out, Format::Table, &things())),
            "NAME      TAGS\na         x,y\nlong [0m  -\n"
        );
        assert_eq!(
            text(|out| list(out, Format::Wide, &things()[..1])),
            "NAME  TAGS  MEMORY\na     x,y   268435456\n"
        );
        assert_eq!(
            text(|out| list::<Thing>(out, Format::Table, &[])),
            "NAME  TAGS\n"
        );
        let [first, second] = things();
        let others = Thing {
            owner: "bob",
            ..second
        };
        assert_eq!(
            text(|out| list(out, Format::Table, &[first, others])),
            "NAME      OWNER  TAGS\na         ann    x,y\nlong [0m  bob    -\n"
        );
    }

    #[test]
    fn objects() {
        let expected = "name         a\nmemoryBytes  256M\ntags         x, y\ninner.on     yes\n";
        assert_eq!(
            text(|out| object(out, Format::Table, &things()[0])),
            expected
        );
    }

    #[test]
    fn machine_forms() {
        let json: serde_json::Value =
            serde_json::from_str(&text(|out| list(out, Format::Json, &things()))).unwrap();
        assert_eq!(json["items"][0]["memoryBytes"], 256 << 20);
        assert_eq!(json["items"][1]["tags"], serde_json::json!([]));
        let yaml = text(|out| list(out, Format::Yaml, &things()[..1]));
        assert_eq!(
            yaml,
            "items:\n- name: a\n  memoryBytes: 268435456\n  tags:\n  - x\n  - y\n  inner:\n    on: true\n"
        );
    }
}
