//! A web server on the loopback interface whose replies a test defines.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// An HTTP request.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        Some(value)
    }

    /// The first byte of the requested range, 0 without a `Range` header.
    pub fn start(&self) -> usize {
        let Some(range) = self.header("range") else {
            return 0;
        };
        let start = range.strip_prefix("bytes=").unwrap();
        start.strip_suffix('-').unwrap().parse().unwrap()
    }
}

/// An HTTP reply.
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: usize,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Reply {
            status,
            headers: vec![],
            body: vec![],
            cut: usize::MAX,
        }
    }

    pub fn body(body: &[u8]) -> Self {
        Reply {
            body: body.into(),
            ..Reply::new(200)
        }
    }

    pub fn status(self, status: u16) -> Self {
        Reply { status, ..self }
    }

    /// The reply of a server that supports ranges.
    pub fn range(body: &[u8], request: &Request) -> Self {
        match request.start() {
            0 => Reply::body(body),
            start if start >= body.len() => Reply::body(b"nothing left")
                .status(416)
                .header("content-range", format!("bytes */{}", body.len())),
            start => Reply::body(&body[start..]).status(206).header(
                "content-range",
                format!("bytes {start}-{}/{}", body.len() - 1, body.len()),
            ),
        }
        .header("etag", "\"one\"")
    }

    pub fn redirect(location: impl Into<String>) -> Self {
        Reply::new(302).header("location", location)
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Breaks the connection after `bytes` of the body.
    pub fn cut(mut self, bytes: usize) -> Self {
        self.cut = bytes;
        self
    }
}

/// A server that lives as long as the test process.
pub struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` is called with the number of earlier requests and the request.
    pub fn new(answer: impl Fn(usize, &Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(vec![]));
        let log = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else {
                    continue;
                };
                let before = log.lock().unwrap().len();
                log.lock().unwrap().push(request.clone());
                let _ = write(stream, answer(before, &request));
            }
        });
        Server { port, seen }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_string();
    let mut headers = vec![];
    while let Some(Ok(line)) = lines.next() {
        if line.is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(": ") {
            headers.push((key.to_lowercase(), value.to_string()));
        }
    }
    Some(Request { path, headers })
}

fn write(mut stream: TcpStream, reply: Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} -\r\nconnection: close\r\n", reply.status);
    let mut has_length = false;
    for (name, value) in &reply.headers {
        has_length |= *name == "content-length";
        head += &format!("{name}: {value}\r\n");
    }
    if !has_length {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&reply.body[..reply.cut.min(reply.body.len())])
}
