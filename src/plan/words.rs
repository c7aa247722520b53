//! Which names plans, stages and tools may have.

/// The names that [`bad_name`] accepts, except for their length.
pub(super) const NAME_PATTERN: &str = "^[a-z0-9][a-z0-9._-]*$";

/// Files that kiln writes beside the folders of stages. `SHA256SUMS` is not a valid name anyway.
const RESERVED: [&str; 2] = ["receipt.json", "provenance.json"];

/// Maximum length of a name in bytes.
pub(super) const MAX_NAME: usize = 100;

/// Why `name` cannot name a plan, stage or tool. A name becomes a folder and a part of part names.
pub(super) fn bad_name(name: &str) -> Option<&'static str> {
    if !is_word(name) {
        return Some(
            "a name is lower-case letters, digits, `.`, `_` and `-`, and begins with a letter or \
             digit",
        );
    }
    if RESERVED.contains(&name) {
        return Some("kiln itself writes a file of that name beside the artifacts");
    }
    if name.len() > MAX_NAME {
        return Some("a name has at most 100 characters");
    }
    None
}

/// Whether `name` matches [`NAME_PATTERN`].
fn is_word(name: &str) -> bool {
    for (index, c) in name.char_indices() {
        let is_alphanumeric = c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_separator = matches!(c, '.' | '_' | '-') && index > 0;
        if !is_alphanumeric && !is_separator {
            return false;
        }
    }
    !name.is_empty()
}
