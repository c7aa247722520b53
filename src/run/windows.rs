//! The windows of a text over which models are run.

use crate::base::{Code, Context, Problem, Result};
use crate::model::tokenizer::Tokenizer;

/// Some editors put it at the start of a file; it is not part of the text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Windows have three digits in their names.
pub const MAX_WINDOWS: u32 = 999;

/// The first `count` windows of `text`, consecutive and of `length` tokens each. If the model
/// expects a certain first token, each window starts with it.
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
    let bos = tokenizer.bos_token();
    let first_tokens = usize::from(bos.is_some());
    let length = (length as usize).saturating_sub(first_tokens).max(1);
    let mut windows: Vec<Vec<u32>> = vec![];
    for text_tokens in tokens.chunks_exact(length).take(count as usize) {
        let mut window = Vec::with_capacity(first_tokens + length);
        window.extend(bos);
        window.extend_from_slice(text_tokens);
        windows.push(window);
    }
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
