//! Downloads that survive: a broken connection goes on where it broke, also in another process.
//!
//! The folder of a download holds `download` (the bytes so far), `etag` (which version of the file
//! they are of) and, in the end, only `whole`.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use super::received::{next, received};
use super::trust::is_distrust;
use super::url::Address;
use super::{Machine, Proxies, clear, digest_differs, is_sha256, sha256_of, whole};
use crate::action::Job;
use crate::base::{Code, Context, Problem, Result, bytes, duration, open_file, read_file};

/// Attempts without one new byte before giving up.
const ATTEMPTS: u32 = 5;
const LONGEST_PAUSE: Duration = Duration::from_secs(16);
const MAX_REDIRECTS: usize = 10;
/// A stalled connection counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_ETAG_BYTES: u64 = 8 << 10;
/// As much is told of what a server says of its own refusal.
const MAX_SAID_BYTES: usize = 500;
/// Cap on all certificates together: those of the world take 250 kB.
const MAX_PEM_BYTES: u64 = 16 << 20;
/// Cap on a file: far above any model, and below what fills a disk unseen.
const MAX_FILE_BYTES: u64 = 1 << 40;
/// A connection that brings less than this in [`RATE_WINDOW`] counts as stalled, though it never
/// pauses for long.
const LEAST_BYTES: u64 = 64 << 10;
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// The longest that a server may have us wait, all its answers together.
const MAX_WAIT: Duration = Duration::from_secs(60 * 60);

/// The complete file of `url`, in `folder`. `token` is shown to the host of `url` and to no other;
/// `pin` is the sha256 that is hoped for, or empty.
pub(super) fn download(
    machine: &Machine,
    url: &Address,
    token: Option<&str>,
    pin: &str,
    folder: &Path,
    job: &Job,
) -> Result<PathBuf> {
    let done = whole(folder);
    if done.exists() {
        return Ok(done);
    }
    let download = Download {
        agent: agent(machine)?,
        proxies: &machine.proxies,
        url,
        token,
        pin,
        folder,
        job,
    };
    let (mut most, mut failures) = (0, 0);
    let mut waited = Duration::ZERO;
    loop {
        job.check_cancelled()?;
        let failure = match download.attempt() {
            Ok(()) => break,
            Err(failure) => failure,
        };
        if let Some(wait) = failure.wait.filter(|wait| *wait > MAX_WAIT) {
            let message = format!("the server asks to wait {}", duration(wait));
            return Err(failure
                .problem
                .within(message)
                .help("run the same command again then: it goes on where it was"));
        }
        // Each answer counts as a second at least, so that they come to an end.
        let told = failure.wait.map(|wait| {
            (
                wait,
                waited.saturating_add(wait.max(Duration::from_secs(1))),
            )
        });
        if let Some((wait, sum)) = told.filter(|(_, sum)| *sum <= MAX_WAIT) {
            waited = sum;
            wait_as_told(wait.max(machine.first_pause), job)?;
            continue;
        }
        let have = download.have();
        failures = if have > most { 1 } else { failures + 1 };
        most = most.max(have);
        if !failure.may_pass || failures == ATTEMPTS {
            return Err(*failure.problem);
        }
        pause(
            machine
                .first_pause
                .saturating_mul(1 << (failures - 1))
                .min(LONGEST_PAUSE),
            job,
        )?;
    }
    fs::rename(download.part(), &done).context(Code::Io, || format!("name {}", done.display()))?;
    Ok(done)
}

struct Download<'a> {
    agent: Agent,
    proxies: &'a Proxies,
    url: &'a Address,
    token: Option<&'a str>,
    pin: &'a str,
    folder: &'a Path,
    job: &'a Job<'a>,
}

/// Why an attempt failed, and whether the next one may fare better.
struct Failure {
    problem: Box<Problem>,
    may_pass: bool,
    /// How long the server says to wait.
    wait: Option<Duration>,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure {
            problem: problem.into(),
            may_pass: false,
            wait: None,
        }
    }
}

fn passing(problem: Problem) -> Failure {
    Failure {
        problem: problem.into(),
        may_pass: true,
        wait: None,
    }
}

/// A response that is not a redirect, and what the first host said about the file.
struct Answer {
    response: Response<Body>,
    hub_sha256: Option<String>,
    /// Whether the host that gave it saw the token.
    saw_token: bool,
}

impl Download<'_> {
    fn part(&self) -> PathBuf {
        self.folder.join("download")
    }

    fn have(&self) -> u64 {
        fs::metadata(self.part()).map_or(0, |meta| meta.len())
    }

    fn etag(&self) -> PathBuf {
        self.folder.join("etag")
    }

    /// Asks for what is missing and appends it.
    fn attempt(&self) -> Result<(), Failure> {
        let etag = read_file(&self.etag(), MAX_ETAG_BYTES).ok();
        let etag = etag
            .and_then(|etag| String::from_utf8(etag).ok())
            .filter(|etag| is_strong_etag(etag));
        let have = self.have();
        let resume = etag.filter(|_| have > 0).map(|etag| (have, etag));
        let Answer {
            response,
            hub_sha256,
            saw_token,
        } = self.ask(resume.as_ref())?;
        self.check_hub(hub_sha256.as_deref(), self.pin)?;
        let range = header(response.headers(), "content-range").unwrap_or_default();
        match (response.status(), resume) {
            (StatusCode::OK, _) => {
                let total = header(response.headers(), "content-length")
                    .and_then(|length| length.parse().ok());
                self.append(response, 0, total)?;
            }
            (StatusCode::PARTIAL_CONTENT, Some((have, etag))) => match content_range(range) {
                _ if header(response.headers(), "etag").is_some_and(|now| now != etag) => {
                    return Err(self.start_over(
                        "the server sent a part of another version than the one asked for",
                    ));
                }
                Some((start, total)) if start == have => {
                    self.append(response, have, Some(total))?
                }
                _ => {
                    return Err(
                        self.start_over("the server sent another range than the one asked for")
                    );
                }
            },
            // The last build ended between the last byte and its name.
            (StatusCode::RANGE_NOT_SATISFIABLE, Some((have, _)))
                if range == format!("bytes */{have}") => {}
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => {
                return Err(self.start_over("the file has become shorter"));
            }
            _ => return Err(refused(self.url, &response, saw_token)),
        }
        if hub_sha256.is_some() && self.pin.is_empty() {
            self.check_hub(hub_sha256.as_deref(), &sha256_of(&self.part(), self.job)?)?;
        }
        Ok(())
    }

    /// Refuses a file whose digest, pinned or found, is not what the hub says; no opinion if either
    /// is missing.
    fn check_hub(&self, said: Option<&str>, digest: &str) -> Result<()> {
        match said {
            Some(said) if !digest.is_empty() && said != digest => {
                clear(self.folder)?;
                let message = format!("the hub announces a file with sha256 {said}, not {digest}");
                Err(digest_differs(&self.url.to_string(), digest, said).within(message))
            }
            _ => Ok(()),
        }
    }

    /// Appends the body to the `have` bytes there are; `total` is how many there will be, if known.
    fn append(
        &self,
        response: Response<Body>,
        mut have: u64,
        total: Option<u64>,
    ) -> Result<(), Failure> {
        let opened = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.part());
        let mut file = opened.context(Code::Io, || format!("open {}", self.part().display()))?;
        if have == 0 {
            file.set_len(0)
                .context(Code::Io, || format!("empty {}", self.part().display()))?;
            let etag = header(response.headers(), "etag").unwrap_or_default();
            fs::write(self.etag(), etag)
                .context(Code::Io, || format!("write {}", self.etag().display()))?;
        }
        let truncated = |have: u64| {
            let total = total.map_or("an unknown total".into(), bytes);
            let message = format!(
                "the download of `{}` broke after {} of {total}",
                self.url,
                bytes(have)
            );
            Problem::new(Code::FetchTruncated, message)
                .help("run the build again: it goes on where it broke")
        };
        let too_large = || {
            let message = format!(
                "`{}` has more than {}, the most that is fetched",
                self.url,
                bytes(MAX_FILE_BYTES)
            );
            Failure::from(Problem::new(Code::FetchTooLarge, message))
        };
        if total.is_some_and(|total| total > MAX_FILE_BYTES) {
            return Err(too_large());
        }
        let body = received(response.into_body());
        let (mut since, mut had) = (Instant::now(), have);
        loop {
            self.job.check_cancelled()?;
            if since.elapsed() >= RATE_WINDOW {
                if have - had < LEAST_BYTES {
                    let rate = format!(
                        "it brought {} in {}",
                        bytes(have - had),
                        duration(since.elapsed())
                    );
                    return Err(passing(truncated(have).within(rate)));
                }
                (since, had) = (Instant::now(), have);
            }
            let bytes = match next(&body, self.job)? {
                None => break,
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => return Err(passing(truncated(have).because(&error))),
            };
            file.write_all(&bytes)
                .context(Code::Io, || format!("write to {}", self.folder.display()))?;
            have += bytes.len() as u64;
            if have > MAX_FILE_BYTES {
                return Err(too_large());
            }
            self.job.progress(have, total.unwrap_or(0), "B");
        }
        if total.is_some_and(|total| total != have) {
            Err(passing(truncated(have)))
        } else {
            Ok(())
        }
    }

    /// Forgets the bytes so far; the next attempt asks for all.
    fn start_over(&self, why: &str) -> Failure {
        match clear(self.folder) {
            Ok(()) => passing(Problem::new(
                Code::FetchRange,
                format!("`{}`: {why}", self.url),
            )),
            Err(problem) => problem.into(),
        }
    }

    /// Sends the request and follows redirects. By hand, because the hub's digest stands on the
    /// way, and a token must not leave its host.
    fn ask(&self, resume: Option<&(u64, String)>) -> Result<Answer, Failure> {
        let mut at = self.url.clone();
        let mut hub_sha256 = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self
                .agent
                .get(at.whole())
                .header("accept-encoding", "identity");
            let home = at.is_at_home_with(self.url);
            let token = self.token.filter(|_| home);
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some((have, etag)) = resume {
                request = request
                    .header("range", format!("bytes={have}-"))
                    .header("if-range", etag);
            }
            let proxy = self.proxies.of_address(&at)?;
            let request = request.config().proxy(proxy.clone()).build();
            let (send, receive) = mpsc::channel();
            thread::spawn(move || drop(send.send(request.call())));
            let silent = || Problem::new(Code::FetchConnect, "the request ended without an answer");
            let answer = next(&receive, self.job)?.ok_or_else(silent)?;
            let response = answer.map_err(|error| unreachable(&at, proxy.as_ref(), error))?;
            if home {
                // Large files are named by their sha256 there, small ones by the 40 digits of git.
                let said =
                    header(response.headers(), "x-linked-etag").map(|etag| etag.trim_matches('"'));
                hub_sha256 = said
                    .filter(|said| is_sha256(said))
                    .map(str::to_ascii_lowercase)
                    .or(hub_sha256);
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer {
                    response,
                    hub_sha256,
                    saw_token: token.is_some(),
                });
            }
            let next = match response.headers().get("location") {
                Some(location) => at.follow(location.as_bytes()),
                None => Err(Problem::new(
                    Code::FetchRedirect,
                    "it does not say where to",
                )),
            };
            at = next.map_err(|problem| {
                problem.within(format!("`{}` redirects to a bad place", self.url))
            })?;
        }
        Err(Problem::new(
            Code::FetchRedirect,
            format!("`{}` redirects more than {MAX_REDIRECTS} times", self.url),
        )
        .into())
    }
}

fn agent(machine: &Machine) -> Result<Agent> {
    let roots = match &machine.certificates {
        None => RootCerts::WebPki,
        Some(path) => {
            let pem = pem(path).context(Code::FetchTls, || {
                format!("read the certificates in {}", path.display())
            })?;
            let certificates = parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            RootCerts::new_with_certs(&certificates.collect::<Vec<_>>())
        }
    };
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .tls_config(TlsConfig::builder().root_certs(roots).build());
    Ok(config.build().new_agent())
}

/// What the file `path` holds, or all files in the folder, to a limit.
fn pem(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut pem = vec![];
    let mut read = |path: &Path| -> std::io::Result<()> {
        open_file(path)?
            .take(MAX_PEM_BYTES.saturating_sub(pem.len() as u64))
            .read_to_end(&mut pem)?;
        pem.push(b'\n');
        Ok(())
    };
    if !path.is_dir() {
        read(path)?;
        return Ok(pem);
    }
    let mut files = fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<PathBuf>>>()?;
    files.sort();
    // What else lies there is no certificate.
    files.iter().for_each(|file| drop(read(file)));
    Ok(pem)
}

/// The connection did not come about, or not as far as an answer.
fn unreachable(url: &Address, proxy: Option<&Proxy>, error: ureq::Error) -> Failure {
    let tls = is_distrust(&error);
    let host = url.host();
    if matches!(error, ureq::Error::Http(_) | ureq::Error::BadUri(_)) {
        let problem =
            Problem::new(Code::FetchRequest, format!("`{url}` cannot be asked")).because(&error);
        return problem
            .help(
                "the request never left this machine: check the address, HF_TOKEN and the proxies",
            )
            .into();
    }
    if matches!(
        error,
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..)
    ) {
        let problem = Problem::new(
            Code::FetchAnswer,
            format!("`{host}` answered something that is not HTTP"),
        );
        return problem
            .because(&error)
            .help("check the address, its port and the proxies")
            .into();
    }
    let problem = if tls {
        Problem::new(Code::FetchTls, format!("no trust in `{host}`")).help(
            "if this network signs its own certificates, name the file that holds them: \
             SSL_CERT_FILE=...",
        )
    } else {
        match proxy {
            None => Problem::new(Code::FetchConnect, format!("no answer from `{host}`"))
                .help("check the network, and HTTPS_PROXY if it needs one"),
            Some(proxy) => {
                let way = format!(
                    "no answer from `{host}` by the proxy `{}:{}`",
                    proxy.host(),
                    proxy.port()
                );
                Problem::new(Code::FetchConnect, way)
                    .help("check HTTPS_PROXY or ALL_PROXY; NO_PROXY lists hosts that need none")
            }
        }
    };
    Failure {
        problem: problem.because(&error).into(),
        may_pass: !tls,
        wait: None,
    }
}

/// The server answered, with something else than the file. Of the hub's own words,
/// `X-Error-Message` says most.
fn refused(url: &Address, response: &Response<Body>, saw_token: bool) -> Failure {
    let status = response.status();
    let mut problem = match status.as_u16() {
        404 | 410 => Problem::new(
            Code::FetchNotFound,
            format!("there is no `{url}` ({status})"),
        )
        .help(
            "check the spelling, the revision and the version; a private or gated repository \
             looks like this too, without its token",
        ),
        401 | 403 => Problem::new(
            Code::FetchForbidden,
            format!("`{url}` is not for everybody ({status})"),
        )
        .help(match saw_token {
            true => {
                "HF_TOKEN was shown and not accepted: there is no such repository, or it is \
                 private or gated. Check the spelling; accept the model's terms with the token's \
                 account, or make a token that may read it"
            }
            false => {
                "there is no such repository, or it is private or gated: check the spelling; for a \
                 gated model, accept its terms on the hub and set HF_TOKEN. No token was shown to \
                 this host"
            }
        }),
        _ => Problem::new(Code::FetchStatus, format!("`{url}` answered {status}")),
    };
    let said = header(response.headers(), "x-error-message")
        .map(|said| &said[..said.floor_char_boundary(MAX_SAID_BYTES)]);
    problem
        .causes
        .extend(said.map(|said| format!("the server said: {said}")));
    let may_pass = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
    let wait = header(response.headers(), "retry-after").and_then(retry_after);
    Failure {
        problem: problem.into(),
        may_pass,
        wait: wait.filter(|_| matches!(status.as_u16(), 429 | 503)),
    }
}

/// How long `Retry-After` says to wait: seconds, or until a date (RFC 9110, section 10.2.3).
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Waits, and shows how much of it is over.
fn wait_as_told(time: Duration, job: &Job) -> Result<()> {
    const STEP: Duration = Duration::from_secs(1);
    let mut left = time;
    while !left.is_zero() {
        job.progress(
            (time - left).as_secs(),
            time.as_secs().max(1),
            "s that the server has us wait",
        );
        let step = left.min(STEP);
        pause(step, job)?;
        left -= step;
    }
    Ok(())
}

fn pause(time: Duration, job: &Job) -> Result<()> {
    const SLICE: Duration = Duration::from_millis(100);
    let mut left = time;
    while !left.is_zero() {
        job.check_cancelled()?;
        let slice = left.min(SLICE);
        thread::sleep(slice);
        left -= slice;
    }
    Ok(())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Where the bytes of a partial answer begin, and how long the file is: `bytes 100-199/200`.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

/// Only a strong ETag promises the same bytes (RFC 9110, section 13.1.5).
fn is_strong_etag(etag: &str) -> bool {
    etag.len() > 2
        && etag.starts_with('"')
        && etag.ends_with('"')
        && etag.bytes().all(|byte| byte.is_ascii_graphic())
}
