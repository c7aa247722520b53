//! Suggestions for misspelled words.

/// The candidate most similar to `word`, if at least half of the letters are the same.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    most_similar(word, candidates, 0.5)
}

/// The candidate most similar to `word`, if `word` is probably a typing error. For values like the
/// names of chips, where similar words can mean different things.
pub fn near<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    most_similar(word, candidates, 0.6)
}

fn most_similar<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    least: f64,
) -> Option<&'a str> {
    let mut best = None;
    let mut best_similarity = least;
    for candidate in candidates {
        let similarity = strsim::normalized_damerau_levenshtein(word, candidate);
        if similarity >= best_similarity {
            best = Some(candidate);
            best_similarity = similarity;
        }
    }
    best
}

/// "did you mean `x`?", or the list of all candidates, which `what` names.
pub fn hint<'a>(
    word: &str,
    what: &str,
    candidates: impl IntoIterator<Item = &'a str> + Clone,
) -> String {
    if let Some(candidate) = closest(word, candidates.clone()) {
        return format!("did you mean `{candidate}`?");
    }
    let mut quoted = vec![];
    for candidate in candidates {
        quoted.push(format!("`{candidate}`"));
    }
    if quoted.is_empty() {
        return format!("there are no {what}");
    }
    format!("{what}: {}", quoted.join(", "))
}
