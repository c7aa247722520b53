//! Tables of aligned columns.

/// The rows as lines of text, each column as wide as its widest cell.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| column_width(rows, column));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            line += &format!("{cell:width$}  ");
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}

/// Characters of the widest cell of a column.
pub(super) fn column_width<const N: usize>(rows: &[[String; N]], column: usize) -> usize {
    let mut width = 0;
    for row in rows {
        width = width.max(row[column].chars().count());
    }
    width
}
