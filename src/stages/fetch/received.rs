//! Reads the body of a response on a thread of its own, so that a build can be interrupted.

use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ureq::Body;

use crate::action::Job;
use crate::base::Result;

const CHUNK_BYTES: usize = 1 << 18;
/// Chunks that are read before the oldest one is written.
const CHUNKS_AHEAD: usize = 4;

/// The chunks of `body`, read by a new thread.
pub(super) fn read_chunks(body: Body) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::sync_channel(CHUNKS_AHEAD);
    thread::spawn(move || {
        let (mut body, mut buffer) = (body.into_reader(), vec![0; CHUNK_BYTES]);
        loop {
            let chunk = match body.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => Ok(buffer[..count].to_vec()),
                Err(error) => Err(error),
            };
            let is_error = chunk.is_err();
            // The receiver is gone if the build was interrupted.
            if sender.send(chunk).is_err() || is_error {
                return;
            }
        }
    });
    receiver
}

/// The next value of `receiver`; `None` if its sender is gone. Returns early if the job is
/// cancelled, since a server may send nothing for a long time.
pub(super) fn next<T>(receiver: &Receiver<T>, job: &Job) -> Result<Option<T>> {
    const SLICE: Duration = Duration::from_millis(100);
    loop {
        match receiver.recv_timeout(SLICE) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Timeout) => job.check_cancelled()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}
