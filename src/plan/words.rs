//! What the writer may have meant.

/// The candidate most like `word`, if any is like it at all.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// At least half of the letters stay where they are.
    const ALIKE: f64 = 0.5;
    let alike = |candidate: &'a str| {
        (
            strsim::normalized_damerau_levenshtein(word, candidate),
            candidate,
        )
    };
    candidates
        .into_iter()
        .map(alike)
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// "did you mean `x`?", or the list of what there is.
pub fn hint<'a>(
    word: &str,
    what: &str,
    candidates: impl IntoIterator<Item = &'a str> + Clone,
) -> String {
    match closest(word, candidates.clone()) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => {
            let known: Vec<String> = candidates
                .into_iter()
                .map(|word| format!("`{word}`"))
                .collect();
            if known.is_empty() {
                format!("there are no {what}")
            } else {
                format!("{what}: {}", known.join(", "))
            }
        }
    }
}

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

/// The words of `message` between backquotes.
pub fn quoted(message: &str) -> Vec<&str> {
    message.split('`').skip(1).step_by(2).collect()
}
