//! Downloads that can be resumed after a broken connection, also by a later process.
//!
//! The folder of a download contains `download` (the bytes so far) and `etag` (the version of the
//! file); at the end `download` is renamed to `whole`.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use super::received::{next, read_chunks};
use super::trust::is_distrust;
use super::url::Address;
use super::{Machine, Proxies, clear, complete_path, digest_differs, is_sha256, sha256_of};
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
/// How much of a server's error message is shown.
const MAX_MESSAGE_BYTES: usize = 500;
/// Cap on all certificates together. A bundle of all public authorities has 250 kB.
const MAX_PEM_BYTES: u64 = 16 << 20;
/// Cap on a file: far above any model, and below the size of a large disk.
const MAX_FILE_BYTES: u64 = 1 << 40;
/// A connection with fewer bytes than this in [`RATE_WINDOW`] counts as stalled, even if it never
/// reaches [`READ_TIMEOUT`].
const MIN_BYTES: u64 = 64 << 10;
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// Cap on the sum of all waits that a server requests.
const MAX_WAIT: Duration = Duration::from_secs(60 * 60);

/// Downloads `url` into `folder` and returns the path of the file. `token` is sent to the host of
/// `url` only. `pin` is the expected sha256, or empty.
pub(super) fn download(
    machine: &Machine,
    url: &Address,
    token: Option<&str>,
    pin: &str,
    folder: &Path,
    job: &Job,
) -> Result<PathBuf> {
    let complete = complete_path(folder);
    if complete.exists() {
        return Ok(complete);
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
    let (mut most_bytes, mut failures) = (0, 0);
    let mut waited = Duration::ZERO;
    loop {
        job.check_cancelled()?;
        let failure = match download.attempt() {
            Ok(()) => break,
            Err(failure) => failure,
        };
        if let Some(wait) = failure.wait {
            if wait > MAX_WAIT {
                let message = format!("the server asks to wait {}", duration(wait));
                return Err(failure
                    .problem
                    .within(message)
                    .help("run the same command again then: it resumes the download"));
            }
            // Each response counts as a second at least, so that the loop ends.
            let sum = waited.saturating_add(wait.max(Duration::from_secs(1)));
            if sum <= MAX_WAIT {
                waited = sum;
                wait_for_server(wait.max(machine.first_pause), job)?;
                continue;
            }
        }
        let bytes = download.downloaded_bytes();
        failures = if bytes > most_bytes { 1 } else { failures + 1 };
        most_bytes = most_bytes.max(bytes);
        if !failure.is_transient || failures == ATTEMPTS {
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
    fs::rename(download.path(), &complete)
        .context(Code::Io, || format!("name {}", complete.display()))?;
    Ok(complete)
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

/// Why an attempt failed.
struct Failure {
    problem: Box<Problem>,
    /// Whether the next attempt may succeed.
    is_transient: bool,
    /// How long the server asks to wait.
    wait: Option<Duration>,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure {
            problem: problem.into(),
            is_transient: false,
            wait: None,
        }
    }
}

fn transient(problem: Problem) -> Failure {
    Failure {
        problem: problem.into(),
        is_transient: true,
        wait: None,
    }
}

/// The response to the last request of a chain of redirects.
struct FinalResponse {
    response: Response<Body>,
    /// The digest that the hub announced on the way.
    hub_sha256: Option<String>,
    /// Whether the token was sent to its host.
    sent_token: bool,
}

impl Download<'_> {
    /// The path of the bytes so far.
    fn path(&self) -> PathBuf {
        self.folder.join("download")
    }

    fn downloaded_bytes(&self) -> u64 {
        match fs::metadata(self.path()) {
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        }
    }

    fn etag_path(&self) -> PathBuf {
        self.folder.join("etag")
    }

    /// The strong ETag of the bytes so far, if there is one.
    fn read_etag(&self) -> Option<String> {
        let etag = read_file(&self.etag_path(), MAX_ETAG_BYTES).ok()?;
        let etag = String::from_utf8(etag).ok()?;
        if is_strong_etag(&etag) {
            return Some(etag);
        }
        None
    }

    /// Requests the missing bytes and appends them.
    fn attempt(&self) -> Result<(), Failure> {
        let resume = match (self.downloaded_bytes(), self.read_etag()) {
            (start @ 1.., Some(etag)) => Some((start, etag)),
            _ => None,
        };
        let FinalResponse {
            response,
            hub_sha256,
            sent_token,
        } = self.request(resume.as_ref())?;
        self.check_hub(hub_sha256.as_deref(), self.pin)?;
        let range = header(response.headers(), "content-range").unwrap_or_default();
        match (response.status(), resume) {
            (StatusCode::OK, _) => {
                let length = header(response.headers(), "content-length").unwrap_or_default();
                let total = length.parse().ok();
                self.append(response, 0, total)?;
            }
            (StatusCode::PARTIAL_CONTENT, Some((start, etag))) => {
                if header(response.headers(), "etag").is_some_and(|now| now != etag) {
                    return Err(self.start_over(
                        "the server sent a part of another version than the one asked for",
                    ));
                }
                match content_range(range) {
                    Some((found, total)) if found == start => {
                        self.append(response, start, Some(total))?;
                    }
                    _ => {
                        return Err(
                            self.start_over("the server sent another range than the one asked for")
                        );
                    }
                }
            }
            // An earlier build ended between the last byte and the renaming.
            (StatusCode::RANGE_NOT_SATISFIABLE, Some((start, _)))
                if range == format!("bytes */{start}") => {}
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => {
                return Err(self.start_over("the file has become shorter"));
            }
            _ => return Err(refused(self.url, &response, sent_token)),
        }
        if hub_sha256.is_some() && self.pin.is_empty() {
            self.check_hub(hub_sha256.as_deref(), &sha256_of(&self.path(), self.job)?)?;
        }
        Ok(())
    }

    /// Fails if `digest`, pinned or of the downloaded file, is not the one that the hub announced.
    /// Either may be missing.
    fn check_hub(&self, announced: Option<&str>, digest: &str) -> Result<()> {
        match announced {
            Some(sha256) if !digest.is_empty() && sha256 != digest => {
                clear(self.folder)?;
                let message =
                    format!("the hub announces a file with sha256 {sha256}, not {digest}");
                Err(digest_differs(&self.url.to_string(), digest, sha256).within(message))
            }
            _ => Ok(()),
        }
    }

    /// Appends the body to the first `done` bytes. `total` is the size of the file, if known.
    fn append(
        &self,
        response: Response<Body>,
        mut done: u64,
        total: Option<u64>,
    ) -> Result<(), Failure> {
        let path = self.path();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .context(Code::Io, || format!("open {}", path.display()))?;
        if done == 0 {
            file.set_len(0)
                .context(Code::Io, || format!("empty {}", path.display()))?;
            let etag = header(response.headers(), "etag").unwrap_or_default();
            fs::write(self.etag_path(), etag)
                .context(Code::Io, || format!("write {}", self.etag_path().display()))?;
        }
        if total.is_some_and(|total| total > MAX_FILE_BYTES) {
            return Err(self.too_large());
        }
        let body = read_chunks(response.into_body());
        let (mut window_start, mut window_done) = (Instant::now(), done);
        loop {
            self.job.check_cancelled()?;
            if window_start.elapsed() >= RATE_WINDOW {
                let count = done - window_done;
                if count < MIN_BYTES {
                    let time = duration(window_start.elapsed());
                    let rate = format!("it brought {} in {time}", bytes(count));
                    return Err(transient(self.truncated(done, total).within(rate)));
                }
                (window_start, window_done) = (Instant::now(), done);
            }
            let chunk = match next(&body, self.job)? {
                None => break,
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => {
                    return Err(transient(self.truncated(done, total).because(&error)));
                }
            };
            file.write_all(&chunk)
                .context(Code::Io, || format!("write to {}", self.folder.display()))?;
            done += chunk.len() as u64;
            if done > MAX_FILE_BYTES {
                return Err(self.too_large());
            }
            self.job.progress(done, total.unwrap_or(0), "B");
        }
        match total {
            Some(total_bytes) if total_bytes != done => Err(transient(self.truncated(done, total))),
            _ => Ok(()),
        }
    }

    /// The connection ended after `done` of `total` bytes.
    fn truncated(&self, done: u64, total: Option<u64>) -> Problem {
        let total = match total {
            Some(total) => bytes(total),
            None => "an unknown total".into(),
        };
        let message = format!(
            "the download of `{}` broke after {} of {total}",
            self.url,
            bytes(done)
        );
        Problem::new(Code::FetchTruncated, message)
            .help("run the build again: it goes on where it broke")
    }

    fn too_large(&self) -> Failure {
        let message = format!(
            "`{}` has more than {}, the most that is fetched",
            self.url,
            bytes(MAX_FILE_BYTES)
        );
        Problem::new(Code::FetchTooLarge, message).into()
    }

    /// Removes the bytes so far, so that the next attempt requests the whole file.
    fn start_over(&self, why: &str) -> Failure {
        match clear(self.folder) {
            Ok(()) => transient(Problem::new(
                Code::FetchRange,
                format!("`{}`: {why}", self.url),
            )),
            Err(problem) => problem.into(),
        }
    }

    /// Sends the request and follows redirects. The HTTP client does not follow them, because the
    /// hub's digest is in the header of a redirect, and the token must not be sent to other hosts.
    fn request(&self, resume: Option<&(u64, String)>) -> Result<FinalResponse, Failure> {
        let mut address = self.url.clone();
        let mut hub_sha256 = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self
                .agent
                .get(address.with_secrets())
                .header("accept-encoding", "identity");
            let is_same_origin = address.has_same_origin(self.url);
            let token = if is_same_origin { self.token } else { None };
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some((start, etag)) = resume {
                request = request
                    .header("range", format!("bytes={start}-"))
                    .header("if-range", etag);
            }
            let proxy = self.proxies.of_address(&address)?;
            let request = request.config().proxy(proxy.clone()).build();
            let (sender, receiver) = mpsc::channel();
            thread::spawn(move || drop(sender.send(request.call())));
            let response = match next(&receiver, self.job)? {
                Some(Ok(response)) => response,
                Some(Err(error)) => return Err(unreachable(&address, proxy.as_ref(), error)),
                None => {
                    return Err(Problem::new(
                        Code::FetchConnect,
                        "the request ended without an answer",
                    )
                    .into());
                }
            };
            // The hub sends the sha256 of large files, and a git hash of 40 digits of small ones.
            if is_same_origin && let Some(etag) = header(response.headers(), "x-linked-etag") {
                let digest = etag.trim_matches('"');
                if is_sha256(digest) {
                    hub_sha256 = Some(digest.to_ascii_lowercase());
                }
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(FinalResponse {
                    response,
                    hub_sha256,
                    sent_token: token.is_some(),
                });
            }
            let target = match response.headers().get("location") {
                Some(location) => address.follow(location.as_bytes()),
                None => Err(Problem::new(
                    Code::FetchRedirect,
                    "it has no `Location` header",
                )),
            };
            address = target.map_err(|problem| {
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
            let pem = read_pem(path).context(Code::FetchTls, || {
                format!("read the certificates in {}", path.display())
            })?;
            let mut certificates = vec![];
            for item in parse_pem(&pem) {
                if let Ok(PemItem::Certificate(certificate)) = item {
                    certificates.push(certificate);
                }
            }
            RootCerts::new_with_certs(&certificates)
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

/// The bytes of the file `path`, or of all files in the folder `path`, up to a limit.
fn read_pem(path: &Path) -> io::Result<Vec<u8>> {
    let mut pem = vec![];
    if !path.is_dir() {
        append_file(path, &mut pem)?;
        return Ok(pem);
    }
    let mut files = vec![];
    for entry in fs::read_dir(path)? {
        files.push(entry?.path());
    }
    files.sort();
    for file in &files {
        // An entry that cannot be read, like a subfolder, is not a certificate.
        let _ = append_file(file, &mut pem);
    }
    Ok(pem)
}

fn append_file(path: &Path, pem: &mut Vec<u8>) -> io::Result<()> {
    open_file(path)?
        .take(MAX_PEM_BYTES.saturating_sub(pem.len() as u64))
        .read_to_end(pem)?;
    pem.push(b'\n');
    Ok(())
}

/// The connection failed before a response arrived.
fn unreachable(url: &Address, proxy: Option<&Proxy>, error: ureq::Error) -> Failure {
    let tls = is_distrust(&error);
    let host = url.host();
    if matches!(error, ureq::Error::Http(_) | ureq::Error::BadUri(_)) {
        let problem = Problem::new(Code::FetchRequest, format!("`{url}` cannot be requested"))
            .because(&error);
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
                let message = format!(
                    "no answer from `{host}` by the proxy `{}:{}`",
                    proxy.host(),
                    proxy.port()
                );
                Problem::new(Code::FetchConnect, message)
                    .help("check HTTPS_PROXY or ALL_PROXY; NO_PROXY lists hosts that need none")
            }
        }
    };
    Failure {
        problem: problem.because(&error).into(),
        is_transient: !tls,
        wait: None,
    }
}

/// The server sent an error status. The hub's header `X-Error-Message` explains it best.
fn refused(url: &Address, response: &Response<Body>, sent_token: bool) -> Failure {
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
        .help(if sent_token {
            "HF_TOKEN was shown and not accepted: there is no such repository, or it is private or \
             gated. Check the spelling; accept the model's terms with the token's account, or make \
             a token that may read it"
        } else {
            "there is no such repository, or it is private or gated: check the spelling; for a \
             gated model, accept its terms on the hub and set HF_TOKEN. No token was shown to this \
             host"
        }),
        _ => Problem::new(Code::FetchStatus, format!("`{url}` answered {status}")),
    };
    if let Some(message) = header(response.headers(), "x-error-message") {
        let message = &message[..message.floor_char_boundary(MAX_MESSAGE_BYTES)];
        problem.causes.push(format!("the server said: {message}"));
    }
    let wait = if matches!(status.as_u16(), 429 | 503) {
        retry_after(response.headers())
    } else {
        None
    };
    Failure {
        problem: problem.into(),
        is_transient: status.is_server_error() || matches!(status.as_u16(), 408 | 429),
        wait,
    }
}

/// The wait that the header `Retry-After` requests: seconds, or until a date (RFC 9110, section
/// 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = header(headers, "retry-after")?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Waits for `time` and shows the progress.
fn wait_for_server(time: Duration, job: &Job) -> Result<()> {
    const STEP: Duration = Duration::from_secs(1);
    let mut remaining = time;
    while !remaining.is_zero() {
        job.progress(
            (time - remaining).as_secs(),
            time.as_secs().max(1),
            "s that the server has us wait",
        );
        let step = remaining.min(STEP);
        pause(step, job)?;
        remaining -= step;
    }
    Ok(())
}

fn pause(time: Duration, job: &Job) -> Result<()> {
    const SLICE: Duration = Duration::from_millis(100);
    let mut remaining = time;
    while !remaining.is_zero() {
        job.check_cancelled()?;
        let slice = remaining.min(SLICE);
        thread::sleep(slice);
        remaining -= slice;
    }
    Ok(())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The start of a partial response and the size of the file, from `bytes 100-199/200`.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

/// Whether `etag` is a strong ETag. Only these guarantee the same bytes (RFC 9110, section 13.1.5).
fn is_strong_etag(etag: &str) -> bool {
    etag.len() > 2
        && etag.starts_with('"')
        && etag.ends_with('"')
        && etag.bytes().all(|byte| byte.is_ascii_graphic())
}
