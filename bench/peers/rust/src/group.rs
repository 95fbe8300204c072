//! Group commit: one batch is under way, and what comes meanwhile is the next.

use std::collections::HashSet;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::store::Store;

#[derive(Default)]
pub struct Batch {
    pub ids: Vec<i64>,
    pub endpoints: HashSet<Vec<u8>>,
    outcome: Arc<Outcome>,
}

/// All requests of a batch share it. `stored` is None until it is known.
#[derive(Default)]
struct Outcome(Mutex<(Option<bool>, Vec<Waker>)>);

pub struct Stored(Arc<Outcome>);

impl Future for Stored {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        let (stored, waiting) = &mut *self.0 .0.lock().unwrap();
        match *stored {
            Some(stored) => Poll::Ready(stored),
            None => {
                waiting.push(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[derive(Default)]
pub struct Group {
    open: Mutex<Batch>,
    some: Notify,
}

impl Group {
    pub fn start(store: Store) -> Arc<Group> {
        let group = Arc::new(Group::default());
        tokio::spawn(group.clone().run(store));
        group
    }

    pub fn add(&self, id: i64, endpoint: Option<Vec<u8>>) -> Stored {
        let mut open = self.open.lock().unwrap();
        if open.ids.is_empty() {
            self.some.notify_one();
        }
        open.ids.push(id);
        open.endpoints.extend(endpoint);
        Stored(open.outcome.clone())
    }

    async fn run(self: Arc<Group>, mut store: Store) {
        loop {
            self.some.notified().await;
            let batch = mem::take(&mut *self.open.lock().unwrap());
            let result = store.add(&batch).await;
            if let Err(error) = &result {
                eprintln!("a batch was not stored: {error}");
            }
            let waiting = {
                let (stored, waiting) = &mut *batch.outcome.0.lock().unwrap();
                *stored = Some(result.is_ok());
                mem::take(waiting)
            };
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}
