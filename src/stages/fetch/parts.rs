//! Where a file comes from: one URL, one for each of its parts, or the folder of an SDK.

use schemars::JsonSchema;
use serde::Deserialize;

use super::source::Source;
use crate::action::Job;
use crate::base::{CanonJson, Code, Context, Problem, Result, without_secrets};

/// Maximum number of parts of a file.
pub const MAX_PARTS: usize = 1000;

/// The parts of one file, in their order.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Parts {
    /// The URL of each.
    Listed(Vec<String>),
    /// One URL for all, in which `{1..22}` is replaced by the number of the part, `{01..22}` by a
    /// number of two digits.
    Numbered(String),
}

impl Parts {
    /// The URL of each part.
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
    /// The URL of one file, or of a wheel to unpack.
    File(String),
    /// The URLs of the parts of one file.
    Parts(Vec<String>),
    /// The absolute path of an SDK.
    Sdk(String),
}

impl Origin {
    /// Reads the origin of the action of `job`.
    pub(super) fn of(job: &Job) -> Result<Self> {
        let text = job.origin()?;
        // A URL cannot begin like a path or a JSON list.
        if text.starts_with('/') {
            return Ok(Origin::Sdk(text.into()));
        }
        if !text.starts_with('[') {
            return Ok(Origin::File(text.into()));
        }
        let urls = serde_json::from_str(text);
        Ok(Origin::Parts(urls.context(Code::PlanUrl, || {
            format!("read the parts in `{}`", without_secrets(text))
        })?))
    }

    /// Its text in an action: the URL, or a JSON list of URLs.
    pub(super) fn text(self) -> Result<String> {
        match self {
            Origin::File(text) | Origin::Sdk(text) => Ok(text),
            Origin::Parts(urls) => Ok(CanonJson::of(&urls)?.to_string()),
        }
    }

    /// Its URLs, in their order.
    pub(super) fn urls(&self) -> &[String] {
        match self {
            Origin::File(url) => std::slice::from_ref(url),
            Origin::Parts(urls) => urls,
            Origin::Sdk(_) => &[],
        }
    }
}

/// A `{FROM..TO}` in a pattern, and the text up to the next one.
struct NumberRange<'a> {
    from: usize,
    to: usize,
    /// Minimum number of digits.
    width: usize,
    text: &'a str,
}

impl<'a> NumberRange<'a> {
    /// Reads `text`, which follows a `{`; otherwise, what is wrong with it.
    fn parse(text: &'a str) -> Result<Self, &'static str> {
        let Some((range, text)) = text.split_once('}') else {
            return Err("a `{` without its `}`");
        };
        let Some((from, to)) = range.split_once("..") else {
            return Err("a `{...}` that is no `{FROM..TO}`");
        };
        let width = if from.starts_with('0') { from.len() } else { 0 };
        let (Ok(from), Ok(to)) = (from.parse(), to.parse()) else {
            return Err("a range that does not go between numbers");
        };
        Ok(NumberRange {
            from,
            to,
            width,
            text,
        })
    }

    /// How many numbers there are; `None` if the range goes down.
    fn len(&self) -> Option<usize> {
        self.to.checked_sub(self.from)?.checked_add(1)
    }
}

/// Replaces every `{FROM..TO}` in `pattern` by its numbers, one URL for each.
fn numbered(pattern: &str) -> Result<Vec<String>> {
    expand_ranges(pattern).map_err(|why| {
        Problem::new(
            Code::PlanParameter,
            format!("`{}`: {why}", without_secrets(pattern)),
        )
        .help(
            "write the numbers of the parts as in `hf:OWNER/REPO/FILE.part{1..3}of3`, or list the \
             parts",
        )
    })
}

/// The URLs of `pattern`; otherwise, what is wrong with it.
fn expand_ranges(pattern: &str) -> Result<Vec<String>, &'static str> {
    let mut texts = pattern.split('{');
    let begin = texts.next().unwrap_or_default();
    let mut ranges = vec![];
    for text in texts {
        ranges.push(NumberRange::parse(text)?);
    }
    let Some(first) = ranges.first() else {
        return Err("no `{FROM..TO}`");
    };
    let Some(count @ ..=MAX_PARTS) = first.len() else {
        return Err("a range that goes down, or too far");
    };
    if ranges.iter().any(|range| range.len() != Some(count)) {
        return Err("its ranges have different lengths");
    }
    let mut urls = vec![];
    for index in 0..count {
        let mut url = begin.to_string();
        for range in &ranges {
            let (number, width) = (range.from + index, range.width);
            url += &format!("{number:0width$}{}", range.text);
        }
        urls.push(url);
    }
    Ok(urls)
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
