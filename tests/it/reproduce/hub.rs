//! A fake of the Hugging Face hub: it sends the digest of a file and redirects the download to
//! another host, whose connection breaks twice.

use crate::support::fetching::sha256;
use crate::support::web::{Reply, Server};

/// The hub, and the other host.
pub struct Hub {
    hub: Server,
    content: Server,
}

/// The number of connections that break, each after a third of the requested bytes.
const BREAKS: usize = 2;

impl Hub {
    /// A hub that serves `model` for every path.
    pub fn of(model: Vec<u8>) -> Self {
        let etag = format!("\"{}\"", sha256(&model));
        let content = Server::new(move |before, request| {
            let requested = model.len().saturating_sub(request.start());
            let reply = Reply::range(&model, request);
            if before < BREAKS {
                reply.cut(requested / 3)
            } else {
                reply
            }
        });
        let to = content.url("/cdn/model.gguf?signed");
        let hub =
            Server::new(move |_, _| Reply::redirect(&to).header("x-linked-etag", etag.clone()));
        Hub { hub, content }
    }

    /// The value for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        self.hub.url("")
    }

    /// The paths requested from the hub.
    pub fn paths(&self) -> Vec<String> {
        self.hub
            .seen()
            .into_iter()
            .map(|request| request.path)
            .collect()
    }

    /// The first byte of each request to the other host.
    pub fn starts(&self) -> Vec<usize> {
        self.content
            .seen()
            .iter()
            .map(|request| request.start())
            .collect()
    }
}
