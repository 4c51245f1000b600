//! The picture: pauses and times to running, a bar for each row, the scale logarithmic.

use std::path::Path;

use plotters::prelude::*;

use crate::report::Report;

/// One bar.
struct Bar {
    label: String,
    median: f64,
    p99: f64,
}

/// Draws a report.
pub fn draw(report: &Report, to: &Path) -> anyhow::Result<()> {
    let label = |row: &crate::report::Row| match row.forks {
        0 | 1 => row.what.clone(),
        forks => format!("{forks} forks, {}", row.what),
    };
    let pauses: Vec<Bar> = report
        .rows
        .iter()
        .filter_map(|row| {
            row.pause_ms.as_ref().map(|s| Bar {
                label: label(row),
                median: s.median,
                p99: s.p99,
            })
        })
        .collect();
    let times: Vec<Bar> = report
        .rows
        .iter()
        .filter_map(|row| {
            row.running_ms.as_ref().map(|s| Bar {
                label: label(row),
                median: s.median,
                p99: s.p99,
            })
        })
        .collect();
    let line = 22;
    let heights = [
        pauses.len() as u32 * line + 90,
        times.len() as u32 * line + 90,
    ];
    let root = SVGBackend::new(to, (1000, heights[0] + heights[1])).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(heights[0]);
    chart(
        &upper,
        "The parent's pause, ms: median, and the 99th percentile as a line",
        &pauses,
    )?;
    chart(
        &lower,
        "From the request to the last child running, ms",
        &times,
    )?;
    root.present()?;
    Ok(())
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    bars: &[Bar],
) -> anyhow::Result<()> {
    let most = bars.iter().fold(10.0_f64, |most, bar| most.max(bar.p99));
    let count = bars.len() as i32;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(25)
        .y_label_area_size(380)
        .build_cartesian_2d((1.0..most * 1.3).log_scale(), 0..count.max(1))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    chart.draw_series(bars.iter().zip(0..).map(|(bar, place)| {
        let row = count - 1 - place;
        Rectangle::new(
            [(1.0, row), (bar.median.max(1.01), row + 1)],
            BLUE.mix(0.5).filled(),
        )
    }))?;
    chart.draw_series(bars.iter().zip(0..).map(|(bar, place)| {
        let row = count - 1 - place;
        PathElement::new(
            vec![(bar.p99.max(1.01), row), (bar.p99.max(1.01), row + 1)],
            BLACK,
        )
    }))?;
    // The labels stand left of the plot, each at its bar.
    let plot = chart.plotting_area();
    for (bar, place) in bars.iter().zip(0..) {
        let (x, y) = plot.map_coordinate(&(1.0, count - place));
        let text = format!("{}: {:.1}", bar.label, bar.median);
        let style = ("sans-serif", 12).into_font().color(&BLACK).pos(
            plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Right,
                plotters::style::text_anchor::VPos::Top,
            ),
        );
        area.draw(&Text::new(
            text,
            (x - 6, y - area.get_base_pixel().1 + 4),
            style,
        ))?;
    }
    Ok(())
}
