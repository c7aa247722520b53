//! A store whose n-th operation goes wrong, wrapped around any other.

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use kiln::action::{ActionKey, Blob, BlobSink, Content};
use kiln::base::{Code, Context, Digest, Result};
use kiln::store::{ActionCache, ActionResult, BlobStore, Note, Notes};

/// All that a build needs of a store.
pub trait Store: BlobStore + ActionCache + Notes {}

impl<S: BlobStore + ActionCache + Notes> Store for S {}

/// How an operation goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Once: the disk gives an error.
    Error,
    /// From then on: nothing can be written any more.
    Full,
    /// Once: what is there is not seen.
    Vanish,
}

pub const FAULTS: [Fault; 3] = [Fault::Error, Fault::Full, Fault::Vanish];

/// What the errors say.
pub const TIRED: &str = "the disk is tired";
pub const FULL: &str = "the disk is full";

/// The store, and what will happen to it.
pub struct Faulty<'a> {
    inner: &'a dyn Store,
    trouble: Arc<Trouble>,
}

struct Trouble {
    fault: Fault,
    /// The first operation has the number 1.
    at: usize,
    done: AtomicUsize,
    struck: AtomicUsize,
}

impl<'a> Faulty<'a> {
    pub fn new(inner: &'a dyn Store, fault: Fault, at: usize) -> Faulty<'a> {
        Faulty {
            inner,
            trouble: Arc::new(Trouble {
                fault,
                at,
                done: 0.into(),
                struck: 0.into(),
            }),
        }
    }

    /// One to which nothing happens.
    pub fn never(inner: &'a dyn Store) -> Faulty<'a> {
        Faulty::new(inner, Fault::Error, usize::MAX)
    }

    /// How many operations there were.
    pub fn done(&self) -> usize {
        self.trouble.done.load(SeqCst)
    }

    /// How many of them went wrong.
    pub fn struck(&self) -> usize {
        self.trouble.struck.load(SeqCst)
    }
}

impl Trouble {
    /// Counts an operation, and whether it goes wrong.
    fn strikes(&self, is_hurt: impl Fn(usize) -> bool) -> bool {
        let strikes = is_hurt(self.done.fetch_add(1, SeqCst) + 1);
        self.struck.fetch_add(usize::from(strikes), SeqCst);
        strikes
    }

    /// Yields whether what is there is seen.
    fn read(&self) -> Result<bool> {
        let strikes = self.strikes(|number| number == self.at && self.fault != Fault::Full);
        match self.fault {
            Fault::Error if strikes => {
                Err(io::Error::other(TIRED)).context(Code::of("test::read"), || "read".into())
            }
            _ => Ok(!strikes),
        }
    }

    fn write(&self) -> io::Result<()> {
        let strikes = self.strikes(|number| match self.fault {
            Fault::Error => number == self.at,
            Fault::Full => number >= self.at,
            Fault::Vanish => false,
        });
        match self.fault {
            Fault::Full if strikes => Err(io::Error::new(ErrorKind::StorageFull, FULL)),
            _ if strikes => Err(io::Error::other(TIRED)),
            _ => Ok(()),
        }
    }

    fn put(&self) -> Result<()> {
        self.write()
            .context(Code::of("test::write"), || "write".into())
    }
}

impl BlobStore for Faulty<'_> {
    fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        if self.trouble.read()? {
            self.inner.missing(digests)
        } else {
            Ok(digests.into())
        }
    }

    fn open(&self, digest: &Digest) -> Result<Option<Blob>> {
        if self.trouble.read()? {
            self.inner.open(digest)
        } else {
            Ok(None)
        }
    }

    fn path(&self, digest: &Digest) -> Result<Option<PathBuf>> {
        if self.trouble.read()? {
            self.inner.path(digest)
        } else {
            Ok(None)
        }
    }

    fn create(&self) -> Result<Box<dyn BlobSink>> {
        self.trouble.put()?;
        Ok(Box::new(Sink {
            trouble: Arc::clone(&self.trouble),
            inner: self.inner.create()?,
        }))
    }
}

impl ActionCache for Faulty<'_> {
    fn get(&self, key: &ActionKey) -> Result<Option<ActionResult>> {
        if self.trouble.read()? {
            self.inner.get(key)
        } else {
            Ok(None)
        }
    }

    fn put(&self, result: &ActionResult) -> Result<()> {
        self.trouble.put()?;
        self.inner.put(result)
    }
}

impl Notes for Faulty<'_> {
    fn read(&self, question: &Digest) -> Result<Option<Note>> {
        if self.trouble.read()? {
            self.inner.read(question)
        } else {
            Ok(None)
        }
    }

    fn write(&self, question: &Digest, text: &str) -> Result<()> {
        self.trouble.put()?;
        self.inner.write(question, text)
    }
}

struct Sink {
    trouble: Arc<Trouble>,
    inner: Box<dyn BlobSink>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.trouble.write()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl BlobSink for Sink {
    fn finish(self: Box<Self>) -> Result<Content> {
        self.trouble.put()?;
        self.inner.finish()
    }
}
