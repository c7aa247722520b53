//! Quoting for a POSIX shell.

/// `word`, in quotes if a shell needs them.
pub fn quoted(word: &str) -> String {
    let needs_quotes = |c: char| !c.is_ascii_alphanumeric() && !"-_./=:,+@%".contains(c);
    if word.is_empty() || word.contains(needs_quotes) {
        format!("'{}'", word.replace('\'', r"'\''"))
    } else {
        word.into()
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, expect) in [
            ("--a=b/c", "--a=b/c"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$x", "'$x'"),
        ] {
            assert_eq!(quoted(word), expect);
        }
    }
}
