//! Fault injection: a store that wraps another and fails at its n-th operation.

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use kiln::action::{ActionKey, Blob, BlobSink, Content};
use kiln::base::{Code, Context, Digest, Result};
use kiln::store::{ActionCache, ActionResult, BlobStore, Note, Notes};

/// The traits that a build needs.
pub trait Store: BlobStore + ActionCache + Notes {}

impl<S: BlobStore + ActionCache + Notes> Store for S {}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// One operation returns an I/O error.
    Error,
    /// From the n-th operation on, every write fails.
    Full,
    /// One read finds nothing.
    Vanish,
}

pub const FAULTS: [Fault; 3] = [Fault::Error, Fault::Full, Fault::Vanish];

/// The messages of the errors.
pub const IO_ERROR: &str = "injected I/O error";
pub const FULL: &str = "the disk is full";

/// A store with an injected fault.
pub struct Faulty<'a> {
    inner: &'a dyn Store,
    faults: Arc<FaultInjector>,
}

struct FaultInjector {
    fault: Fault,
    /// The first operation has the number 1.
    at: usize,
    operations: AtomicUsize,
    injected: AtomicUsize,
}

impl<'a> Faulty<'a> {
    pub fn new(inner: &'a dyn Store, fault: Fault, at: usize) -> Faulty<'a> {
        Faulty {
            inner,
            faults: Arc::new(FaultInjector {
                fault,
                at,
                operations: 0.into(),
                injected: 0.into(),
            }),
        }
    }

    /// A store without a fault.
    pub fn without_fault(inner: &'a dyn Store) -> Faulty<'a> {
        Faulty::new(inner, Fault::Error, usize::MAX)
    }

    /// The number of operations so far.
    pub fn operations(&self) -> usize {
        self.faults.operations.load(SeqCst)
    }

    /// The number of faults injected so far.
    pub fn injected(&self) -> usize {
        self.faults.injected.load(SeqCst)
    }
}

impl FaultInjector {
    /// Counts an operation and returns whether it fails.
    fn fails(&self, is_faulty: impl Fn(usize) -> bool) -> bool {
        let fails = is_faulty(self.operations.fetch_add(1, SeqCst) + 1);
        self.injected.fetch_add(usize::from(fails), SeqCst);
        fails
    }

    /// Returns whether the read may find something.
    fn read(&self) -> Result<bool> {
        let fails = self.fails(|number| number == self.at && self.fault != Fault::Full);
        match self.fault {
            Fault::Error if fails => {
                Err(io::Error::other(IO_ERROR)).context(Code::of("test::read"), || "read".into())
            }
            _ => Ok(!fails),
        }
    }

    fn write(&self) -> io::Result<()> {
        let fails = self.fails(|number| match self.fault {
            Fault::Error => number == self.at,
            Fault::Full => number >= self.at,
            Fault::Vanish => false,
        });
        match self.fault {
            Fault::Full if fails => Err(io::Error::new(ErrorKind::StorageFull, FULL)),
            _ if fails => Err(io::Error::other(IO_ERROR)),
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
        if self.faults.read()? {
            self.inner.missing(digests)
        } else {
            Ok(digests.into())
        }
    }

    fn open(&self, digest: &Digest) -> Result<Option<Blob>> {
        if self.faults.read()? {
            self.inner.open(digest)
        } else {
            Ok(None)
        }
    }

    fn path(&self, digest: &Digest) -> Result<Option<PathBuf>> {
        if self.faults.read()? {
            self.inner.path(digest)
        } else {
            Ok(None)
        }
    }

    fn create(&self) -> Result<Box<dyn BlobSink>> {
        self.faults.put()?;
        Ok(Box::new(Sink {
            faults: Arc::clone(&self.faults),
            inner: self.inner.create()?,
        }))
    }
}

impl ActionCache for Faulty<'_> {
    fn get(&self, key: &ActionKey) -> Result<Option<ActionResult>> {
        if self.faults.read()? {
            self.inner.get(key)
        } else {
            Ok(None)
        }
    }

    fn put(&self, result: &ActionResult) -> Result<()> {
        self.faults.put()?;
        self.inner.put(result)
    }
}

impl Notes for Faulty<'_> {
    fn read(&self, question: &Digest) -> Result<Option<Note>> {
        if self.faults.read()? {
            self.inner.read(question)
        } else {
            Ok(None)
        }
    }

    fn write(&self, question: &Digest, text: &str) -> Result<()> {
        self.faults.put()?;
        self.inner.write(question, text)
    }
}

struct Sink {
    faults: Arc<FaultInjector>,
    inner: Box<dyn BlobSink>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.faults.write()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl BlobSink for Sink {
    fn finish(self: Box<Self>) -> Result<Content> {
        self.faults.put()?;
        self.inner.finish()
    }
}
