//! What a server sends, read by threads of their own.

use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ureq::Body;

use crate::action::Job;
use crate::base::Result;

const CHUNK_BYTES: usize = 1 << 18;
/// Pieces that are read before the last one is written.
const CHUNKS_AHEAD: usize = 4;

/// The bytes of `body`, piece by piece, as a thread of their own reads them.
pub(super) fn received(body: Body) -> Receiver<io::Result<Vec<u8>>> {
    let (send, receive) = mpsc::sync_channel(CHUNKS_AHEAD);
    thread::spawn(move || {
        let (mut body, mut buffer) = (body.into_reader(), vec![0; CHUNK_BYTES]);
        loop {
            let piece = body.read(&mut buffer).map(|count| buffer[..count].to_vec());
            let is_last = piece.as_ref().is_ok_and(Vec::is_empty);
            let is_error = piece.is_err();
            // Nobody hears of it any more if the build was called off.
            if is_last || send.send(piece).is_err() || is_error {
                return;
            }
        }
    });
    receive
}

/// What comes next of what another thread sends; nothing at its end. A server may be silent for
/// long, and a build that is called off does not wait for it.
pub(super) fn next<T>(sent: &Receiver<T>, job: &Job) -> Result<Option<T>> {
    const SLICE: Duration = Duration::from_millis(100);
    loop {
        match sent.recv_timeout(SLICE) {
            Ok(found) => return Ok(Some(found)),
            Err(RecvTimeoutError::Timeout) => job.check_cancelled()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}
