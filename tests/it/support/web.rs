//! A web server on loopback that answers as a test says.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The first byte asked for by a `Range`, 0 if there is none.
    pub fn start(&self) -> usize {
        let range = self
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |start| start.parse().unwrap())
    }
}

/// What is answered.
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

    /// `body` as a server that knows ranges sends it.
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
    /// `answer` gets the number of requests before this one.
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

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_string();
    let split = |line: String| {
        line.split_once(": ")
            .map(|(key, value)| (key.to_lowercase(), value.to_string()))
    };
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(split)
        .collect();
    Some(Request { path, headers })
}

fn write(mut stream: TcpStream, reply: Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} -\r\nconnection: close\r\n", reply.status);
    if reply
        .headers
        .iter()
        .all(|(name, _)| *name != "content-length")
    {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&reply.body[..reply.cut.min(reply.body.len())])
}
