//! Where a file is: whole in one place, or in pieces.

use schemars::JsonSchema;
use serde::Deserialize;

use super::source::Source;
use crate::action::Job;
use crate::base::{CanonJson, Code, Context, Problem, Result, without_secrets};

/// Most pieces of a file.
pub const MAX_PARTS: usize = 1000;

/// The pieces of one file, in their order.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Parts {
    /// The URL of each.
    Listed(Vec<String>),
    /// One URL for all, in which `{1..22}` stands for the number of the piece, `{01..22}` for a
    /// number of two digits.
    Numbered(String),
}

impl Parts {
    /// The URL of each piece.
    pub(super) fn urls(&self) -> Result<Vec<String>> {
        let urls = match self {
            Parts::Listed(urls) => urls.clone(),
            Parts::Numbered(pattern) => numbered(pattern)?,
        };
        if !(1..=MAX_PARTS).contains(&urls.len()) {
            let message = format!("{} parts: a file has 1 to {MAX_PARTS}", urls.len());
            return Err(Problem::new(Code::PlanParameter, message));
        }
        for url in &urls {
            Source::parse(url)?;
        }
        Ok(urls)
    }
}

/// Where an order fetches from.
pub(super) enum Origin {
    /// One file, or a wheel to unpack, by its URL.
    Whole(String),
    /// The pieces of one file, each by its URL.
    Parts(Vec<String>),
}

impl Origin {
    /// That of the action of `job`.
    pub(super) fn of(job: &Job) -> Result<Self> {
        let text = job.origin()?;
        // No URL begins like a list.
        if !text.starts_with('[') {
            return Ok(Origin::Whole(text.into()));
        }
        let urls = serde_json::from_str(text);
        Ok(Origin::Parts(urls.context(Code::PlanUrl, || {
            format!("read the parts in `{}`", without_secrets(text))
        })?))
    }

    /// As an action says it.
    pub(super) fn text(self) -> Result<String> {
        match self {
            Origin::Whole(url) => Ok(url),
            Origin::Parts(urls) => Ok(CanonJson::of(&urls)?.to_string()),
        }
    }

    /// Its URLs, in their order.
    pub(super) fn urls(&self) -> &[String] {
        match self {
            Origin::Whole(url) => std::slice::from_ref(url),
            Origin::Parts(urls) => urls,
        }
    }
}

/// `pattern` with every `{FROM..TO}` replaced by one number after the other.
fn numbered(pattern: &str) -> Result<Vec<String>> {
    let bad = |why: &str| {
        Problem::new(
            Code::PlanParameter,
            format!("`{}`: {why}", without_secrets(pattern)),
        )
        .help(
            "write the numbers of the parts as in `hf:OWNER/REPO/FILE.part{1..3}of3`, or list the \
             parts",
        )
    };
    let mut pieces = pattern.split('{');
    let begin = pieces.next().unwrap_or_default();
    let mut ranges = vec![];
    for piece in pieces {
        let (range, text) = piece
            .split_once('}')
            .ok_or_else(|| bad("a `{` without its `}`"))?;
        let (from, to) = range
            .split_once("..")
            .ok_or_else(|| bad("a `{...}` that is no `{FROM..TO}`"))?;
        let number = |text: &str| {
            text.parse::<usize>()
                .map_err(|_| bad("a range that does not go between numbers"))
        };
        let width = if from.starts_with('0') { from.len() } else { 0 };
        ranges.push((number(from)?, number(to)?, width, text));
    }
    let Some(&(first_from, first_to, ..)) = ranges.first() else {
        return Err(bad("no `{FROM..TO}`"));
    };
    let count =
        |from: usize, to: usize| to.checked_sub(from).and_then(|steps| steps.checked_add(1));
    let parts = count(first_from, first_to).filter(|parts| *parts <= MAX_PARTS);
    let parts = parts.ok_or_else(|| bad("a range that goes down, or too far"))?;
    if ranges
        .iter()
        .any(|(from, to, ..)| count(*from, *to) != Some(parts))
    {
        return Err(bad("its ranges have different lengths"));
    }
    let url = |index: usize| {
        let number = |(from, _, width, text): &(usize, usize, usize, &str)| {
            format!("{:0width$}{text}", from + index)
        };
        format!("{begin}{}", ranges.iter().map(number).collect::<String>())
    };
    Ok((0..parts).map(url).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_for_the_parts() {
        let urls = |pattern: &str| Parts::Numbered(pattern.into()).urls().unwrap().join(" ");
        assert_eq!(
            urls("hf:a/b/c.part{1..3}of3"),
            "hf:a/b/c.part1of3 hf:a/b/c.part2of3 hf:a/b/c.part3of3"
        );
        assert_eq!(
            urls("pypi:a{9..10}==1#x/{09..10}.bin"),
            "pypi:a9==1#x/09.bin pypi:a10==1#x/10.bin"
        );
    }

    #[test]
    fn patterns_that_name_no_parts_are_refused() {
        let check = |pattern: &str, expected: &str| {
            let problem = Parts::Numbered(pattern.into()).urls().unwrap_err();
            assert!(problem.message.contains(expected), "{problem}");
        };
        check("hf:a/b/c", "no `{FROM..TO}`");
        check("hf:a/b/c{1..2", "a `{` without its `}`");
        check("hf:a/b/c{1}", "a `{...}` that is no `{FROM..TO}`");
        check("hf:a/b/c{a..b}", "a range that does not go between numbers");
        check("hf:a/b/c{3..1}", "a range that goes down, or too far");
        check(
            "hf:a/b/c{0..18446744073709551615}",
            "a range that goes down, or too far",
        );
        check(
            "hf:a/b/c{1..2}of{1..3}",
            "its ranges have different lengths",
        );
        check("ftp:a{1..2}", "no way to fetch from `ftp:`");
        assert!(
            Parts::Listed(vec![])
                .urls()
                .unwrap_err()
                .message
                .contains("0 parts")
        );
    }
}
