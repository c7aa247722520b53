//! Windows: the pieces of a text over which models are run.

use crate::base::{Code, Context, Problem, Result};
use crate::model::tokenizer::Tokenizer;

/// Some editors begin a file with it; it is no text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Windows have three digits in their names.
pub const MAX_WINDOWS: u32 = 999;

/// The first `count` pieces of `text`, one after the other, of `length` tokens each; each begins
/// with the token that the model wants first, if any.
pub fn windows(
    text: &[u8],
    tokenizer: &Tokenizer,
    count: u32,
    length: u32,
) -> Result<Vec<Vec<u32>>> {
    let text =
        std::str::from_utf8(text).context(Code::WindowsText, || "read the text as UTF-8".into())?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let tokens = tokenizer.encode(text)?;
    let length = (length as usize)
        .saturating_sub(tokenizer.first().iter().count())
        .max(1);
    let windows: Vec<Vec<u32>> = tokens
        .chunks_exact(length)
        .take(count as usize)
        .map(|piece| {
            tokenizer
                .first()
                .into_iter()
                .chain(piece.iter().copied())
                .collect()
        })
        .collect();
    if windows.len() < count as usize {
        return Err(Problem::new(
            Code::WindowsText,
            format!(
                "the text has {} tokens, too few for {count} windows of {length}",
                tokens.len()
            ),
        )
        .help("give a longer text, or fewer or shorter windows"));
    }
    Ok(windows)
}
