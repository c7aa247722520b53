//! Threads that take one job after the other: thousands of small jobs are not worth a thread each.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;

use super::Input;

type Work<'env> = Box<dyn FnOnce() -> Input + Send + 'env>;

/// Workers that end when the crew is dropped and its work is done.
pub(super) struct WorkerPool<'env> {
    queue: Sender<Work<'env>>,
    jobs: Arc<Jobs<'env>>,
}

struct Jobs<'env> {
    queue: Mutex<Receiver<Work<'env>>>,
    answers: Sender<Vec<Input>>,
    /// Workers that wait for work, less the work that waits for them.
    idle: Mutex<isize>,
}

impl<'env> WorkerPool<'env> {
    /// Without any worker yet; what comes of its work is sent to `answers`.
    pub(super) fn new(answers: Sender<Vec<Input>>) -> Self {
        let (send, receive) = mpsc::channel();
        WorkerPool {
            queue: send,
            jobs: Arc::new(Jobs {
                queue: Mutex::new(receive),
                answers,
                idle: Mutex::new(0),
            }),
        }
    }

    /// Has `work` done at once, by an idle worker or a new one.
    pub(super) fn work<'scope>(
        &self,
        scope: &'scope Scope<'scope, 'env>,
        work: impl FnOnce() -> Input + Send + 'env,
    ) {
        let is_short_handed = self.jobs.count(-1) < 0;
        // The receiver lives as long as this does.
        let _ = self.queue.send(Box::new(work));
        if is_short_handed {
            self.jobs.count(1);
            let jobs = Arc::clone(&self.jobs);
            scope.spawn(move || jobs.take_one_after_the_other());
        }
    }
}

impl Jobs<'_> {
    fn count(&self, change: isize) -> isize {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        *idle += change;
        *idle
    }

    fn take_one_after_the_other(&self) {
        loop {
            let next = self
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .recv();
            let Ok(work) = next else { return };
            let answer = work();
            // Before the answer: it may bring the next work at once.
            self.count(1);
            let _ = self.answers.send(vec![answer]);
        }
    }
}
