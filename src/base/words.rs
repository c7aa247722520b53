//! What the writer may have meant.

/// The candidate most like `word`, if any is like it at all: at least half of the letters stay
/// where they are.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    like(word, candidates, 0.5)
}

/// The candidate most like `word`, if it is so like it that only a slip of the pen lies between.
/// For values, of which two that look alike may mean different things, as the names of chips do.
pub fn near<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    like(word, candidates, 0.6)
}

fn like<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    least: f64,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::normalized_damerau_levenshtein(word, candidate),
                candidate,
            )
        })
        .filter(|(likeness, _)| *likeness >= least)
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
