//! What may be a name.

/// What [`bad_name`] has nothing against, but for its length.
pub const NAME_PATTERN: &str = "^[a-z0-9][a-z0-9._-]*$";

/// What lies beside the folders of stages; `SHA256SUMS` is no name anyway.
const RESERVED: [&str; 2] = ["receipt.json", "provenance.json"];

/// Most bytes of a name.
pub const MAX_NAME: usize = 100;

/// Why `name` cannot name a plan, stage or tool; it becomes a folder and a part of part names.
pub fn bad_name(name: &str) -> Option<&'static str> {
    let mut characters = name.chars();
    let first_is_good = characters
        .next()
        .is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let good =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    if !first_is_good || !characters.all(good) {
        return Some(
            "a name is lower-case letters, digits, `.`, `_` and `-`, and begins with a letter or \
             digit",
        );
    }
    if RESERVED.contains(&name) {
        return Some("kiln itself writes a file of that name beside the artifacts");
    }
    (name.len() > MAX_NAME).then_some("a name has at most 100 characters")
}
