//! A hub as Hugging Face's is: it says what a file's digest is, and sends the download to another
//! host, which breaks twice.

use super::fetching::sha256;
use super::web::{Reply, Server};

/// The hub, and the other host.
pub struct Hub {
    hub: Server,
    content: Server,
}

/// So many connections break, each after a third of what was asked for.
const BREAKS: usize = 2;

impl Hub {
    /// One that has `model` under every name.
    pub fn of(model: Vec<u8>) -> Self {
        let etag = format!("\"{}\"", sha256(&model));
        let content = Server::new(move |before, request| {
            let asked = model.len().saturating_sub(request.start());
            let reply = Reply::range(&model, request);
            if before < BREAKS {
                reply.cut(asked / 3)
            } else {
                reply
            }
        });
        let to = content.url("/cdn/model.gguf?signed");
        let hub =
            Server::new(move |_, _| Reply::redirect(&to).header("x-linked-etag", etag.clone()));
        Hub { hub, content }
    }

    /// What `HF_ENDPOINT` is to be.
    pub fn endpoint(&self) -> String {
        self.hub.url("")
    }

    /// The paths that were asked of the hub.
    pub fn paths(&self) -> Vec<String> {
        self.hub
            .seen()
            .into_iter()
            .map(|request| request.path)
            .collect()
    }

    /// From which byte on the other host was asked, each time.
    pub fn starts(&self) -> Vec<usize> {
        self.content
            .seen()
            .iter()
            .map(|request| request.start())
            .collect()
    }
}
