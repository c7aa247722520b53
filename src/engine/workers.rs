//! Threads that run one job after another: thousands of small jobs need no thread each.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;

use super::Input;

type Work<'env> = Box<dyn FnOnce() -> Input + Send + 'env>;

/// A pool of workers. They end when the pool is dropped and the queue is empty.
pub(super) struct WorkerPool<'env> {
    queue: Sender<Work<'env>>,
    workers: Arc<Workers<'env>>,
}

struct Workers<'env> {
    queue: Mutex<Receiver<Work<'env>>>,
    answers: Sender<Vec<Input>>,
    /// The number of workers that wait for work, minus the length of the queue.
    idle: Mutex<isize>,
}

impl<'env> WorkerPool<'env> {
    /// A pool without workers, which sends the results of its work to `answers`.
    pub(super) fn new(answers: Sender<Vec<Input>>) -> Self {
        let (send, receive) = mpsc::channel();
        WorkerPool {
            queue: send,
            workers: Arc::new(Workers {
                queue: Mutex::new(receive),
                answers,
                idle: Mutex::new(0),
            }),
        }
    }

    /// Runs `work` without delay, on an idle worker or a new one.
    pub(super) fn spawn<'scope>(
        &self,
        scope: &'scope Scope<'scope, 'env>,
        work: impl FnOnce() -> Input + Send + 'env,
    ) {
        let needs_worker = self.workers.add_idle(-1) < 0;
        // Does not fail: `self` owns the receiver.
        let _ = self.queue.send(Box::new(work));
        if needs_worker {
            self.workers.add_idle(1);
            let workers = Arc::clone(&self.workers);
            scope.spawn(move || workers.run());
        }
    }
}

impl Workers<'_> {
    fn add_idle(&self, change: isize) -> isize {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        *idle += change;
        *idle
    }

    /// The loop of one worker.
    fn run(&self) {
        loop {
            let next = self
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .recv();
            let Ok(work) = next else { return };
            let answer = work();
            // Before sending the answer, which may cause the next work at once.
            self.add_idle(1);
            let _ = self.answers.send(vec![answer]);
        }
    }
}
