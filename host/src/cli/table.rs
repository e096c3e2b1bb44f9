//! Tables for people: aligned columns, and how times, digests and shares stand in them.

use std::fmt::Write as _;

use crate::artifact::registry::printable;

/// The most characters of one cell, but for the last of its line.
const CELL_CHARS: usize = 80;
/// The most characters of the last cell of a line.
const LAST_CHARS: usize = 400;

/// Rows under a head. Columns that hold numbers stand to the right; the last one is not padded, and may be long.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// A table with this head. A column whose name begins with `>` holds numbers.
    pub(super) fn new(head: &[&str]) -> Table {
        let right = head.iter().map(|name| name.starts_with('>')).collect();
        let names = head.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
        Table { rows: vec![names], right }
    }

    /// Adds a row. What stands in it may come from anywhere: nothing in it moves the cursor or ends the line.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        let last = cells.len().saturating_sub(1);
        let cells = cells
            .iter()
            .enumerate()
            .map(|(column, cell)| printable(cell, if column == last { LAST_CHARS } else { CELL_CHARS }));
        self.rows.push(cells.collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table as text, without columns in which nothing stands.
    pub(super) fn text(&self) -> String {
        let columns = self.right.len();
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let is_used = |column: usize| self.rows.iter().skip(1).any(|row| !row[column].is_empty());
        let used: Vec<_> = (0..columns).filter(|column| is_used(*column)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for column in &used {
                let (cell, width) = (&row[*column], width(*column));
                let _ = match self.right[*column] {
                    true => write!(line, "{cell:>width$}  "),
                    false => write!(line, "{cell:<width$}  "),
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// The first digits of a digest, as many as tell it from others.
pub(super) fn short(digest: &str) -> String {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.chars().take(12).collect()
}

/// Hundredths of a percent as percent.
pub(super) fn percent(hundredths: u16) -> String {
    let text = format!("{:.2}", f64::from(hundredths) / 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A number of a few digits; nothing where there is none.
pub(super) fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(0.0) => "0".to_owned(),
        Some(value) if value.abs() >= 1e7 || value.abs() < 1e-4 => format!("{value:.2e}"),
        Some(value) => {
            let digits = if value.abs() >= 100.0 { 1 } else { 4 };
            let text = format!("{value:.digits$}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

/// A moment in milliseconds after the beginning of 1970, in UTC, such as `2026-11-22 09:04:05`.
pub(super) fn moment(ms: u64) -> String {
    let seconds = ms / 1000;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{} {hour:02}:{minute:02}:{second:02}", date(seconds / 86_400))
}

/// The day so many days after the beginning of 1970, such as `2026-11-22`.
pub(super) fn date(days: u64) -> String {
    // Years of 400 repeat. Within them, days are counted from a first of March, so that a leap day is a year's last.
    const ERA: u64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{}-{month:02}-{of_month:02}", year + era * 400 + next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let mut table = Table::new(&["app", "mark", ">calls", "text"]);
        assert!(table.is_empty());
        table.row(["digits", "", "1200", "fine"].map(str::to_owned).to_vec());
        table.row(["é", "", "7", "\u{1b}[2J\nx"].map(str::to_owned).to_vec());
        assert_eq!(table.text(), "app     calls  text\ndigits   1200  fine\né           7  ?[2J x\n");
    }

    #[test]
    fn moments_stand_in_utc() {
        let check = |seconds: u64, expected: &str| assert_eq!(moment(seconds * 1000 + 999), expected);
        check(0, "1970-01-01 00:00:00");
        check(951_782_399, "2000-02-28 23:59:59");
        check(951_782_400, "2000-02-29 00:00:00");
        check(951_868_800, "2000-03-01 00:00:00");
        check(1_709_164_800, "2024-02-29 00:00:00");
        check(1_735_689_599, "2024-12-31 23:59:59");
        check(1_795_338_245, "2026-11-22 09:04:05");
        check(4_107_542_400, "2100-03-01 00:00:00");
        // Whatever a host says.
        let _ = moment(u64::MAX);
    }

    #[test]
    fn numbers_are_short() {
        let check = |value: f64, expected: &str| assert_eq!(number(Some(value)), expected);
        check(0.0, "0");
        check(1.0, "1");
        check(0.99871, "0.9987");
        check(1234.56, "1234.6");
        check(0.000_012, "1.20e-5");
        check(3e9, "3.00e9");
        check(f64::NAN, "NaN");
        assert_eq!(number(None), "");
        assert_eq!(["0 %", "0.01 %", "5 %", "12.5 %", "100 %"], [0, 1, 500, 1250, 10_000].map(percent));
        assert_eq!(short(&format!("sha256:{}", "ab".repeat(32))), "abababababab");
    }
}
