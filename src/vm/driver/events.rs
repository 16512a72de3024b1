//! What happened to a machine, told to everybody who wants to know.
//!
//! Each subscriber has a queue of its own, of bounded length. Who does not take what is in it loses what comes next,
//! and is told how much that was: nobody who tells ever waits for somebody who listens.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use super::{Ending, State};
use crate::event;
use crate::threads::lock;

/// How many events wait for a subscriber at most.
pub const CAPACITY: usize = 128;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Event {
    /// The first has number 1, and none is left out.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// The machine does something else than before.
    State {
        /// What it did.
        from: State,
        /// What it does.
        to: State,
        /// Who wanted it.
        by: String,
        /// How it ended, if it has.
        #[serde(skip_serializing_if = "Option::is_none")]
        end: Option<Ending>,
    },
    /// A snapshot of it has been taken.
    Snapshot {
        /// Where it is.
        directory: String,
        /// By what it is told from all others.
        id: String,
        /// How long the guest stood still for it, in microseconds.
        #[serde(rename = "stopped-for-us")]
        stopped_for_us: u64,
    },
}

/// Everybody who wants to know.
#[derive(Debug, Default)]
pub(super) struct Events {
    state: Mutex<Subscribers>,
}

#[derive(Debug, Default)]
struct Subscribers {
    told: u64,
    all: Vec<Weak<Mailbox>>,
}

#[derive(Debug)]
struct Mailbox {
    /// Set as long as there is something in it.
    bell: EventFd,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    lost: u64,
}

/// What a subscriber finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// So many events are missing here.
    Lost(u64),
    /// The next event.
    Event(Event),
}

/// A subscription, which ends with the value.
#[derive(Debug)]
pub struct Subscription(Arc<Mailbox>);

impl Events {
    /// Tells everybody.
    pub fn tell(&self, what: What) {
        let mut state = lock(&self.state);
        state.told += 1;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let event = Event { number: state.told, unix_ms, what };
        state.all.retain(|mailbox| mailbox.upgrade().is_some_and(|mailbox| mailbox.put(&event)));
    }

    /// A subscription to what is told from now on.
    pub fn subscribe(&self) -> io::Result<Subscription> {
        let mailbox = Arc::new(Mailbox { bell: event::create()?, waiting: Mutex::default() });
        lock(&self.state).all.push(Arc::downgrade(&mailbox));
        Ok(Subscription(mailbox))
    }
}

impl Mailbox {
    /// Puts a copy in, if there is room. Always true: the subscriber is still there.
    fn put(&self, event: &Event) -> bool {
        let mut waiting = lock(&self.waiting);
        if waiting.events.len() < CAPACITY && waiting.lost == 0 {
            waiting.events.push_back(event.clone());
        } else {
            waiting.lost += 1;
        }
        event::signal(&self.bell);
        true
    }
}

impl Subscription {
    /// What has come, the oldest first. Whoever takes all that there is has made room again.
    pub fn next(&self) -> Option<News> {
        let mut waiting = lock(&self.0.waiting);
        if let Some(event) = waiting.events.pop_front() {
            return Some(News::Event(event));
        }
        // Nothing is there to be taken if it was not set.
        let _: io::Result<u64> = self.0.bell.read();
        match std::mem::take(&mut waiting.lost) {
            0 => None,
            lost => Some(News::Lost(lost)),
        }
    }
}

/// Readable when there is something to take.
impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        event::descriptor(&self.0.bell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(by: usize) -> What {
        What::State { from: State::Running, to: State::Paused, by: by.to_string(), end: None }
    }

    fn numbers(subscription: &Subscription) -> Vec<u64> {
        std::iter::from_fn(|| subscription.next())
            .map(|news| match news {
                News::Event(event) => event.number,
                News::Lost(count) => panic!("{count} are lost"),
            })
            .collect()
    }

    #[test]
    fn everybody_gets_what_is_told_from_the_subscription_on() {
        let events = Events::default();
        events.tell(what(0));
        let first = events.subscribe().unwrap();
        events.tell(what(1));
        let second = events.subscribe().unwrap();
        events.tell(what(2));
        assert_eq!((numbers(&first), numbers(&second)), (vec![2, 3], vec![3]));
        drop(first);
        events.tell(what(3));
        assert_eq!(lock(&events.state).all.len(), 1);
        assert_eq!(numbers(&second), [4]);
    }

    #[test]
    fn who_does_not_listen_loses_events_and_is_told_how_many() {
        let events = Events::default();
        let (slow, quick) = (events.subscribe().unwrap(), events.subscribe().unwrap());
        for number in 0..CAPACITY + 7 {
            events.tell(what(number));
            assert_eq!(numbers(&quick).len(), 1);
        }
        for number in 1..=CAPACITY as u64 {
            assert!(matches!(slow.next(), Some(News::Event(event)) if event.number == number));
        }
        // What came after the loss has to come after the notice of it.
        events.tell(what(0));
        assert_eq!(slow.next(), Some(News::Lost(8)));
        assert_eq!(slow.next(), None);
        events.tell(what(0));
        assert_eq!(numbers(&slow), [CAPACITY as u64 + 9]);
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event { number: 3, unix_ms: 5, what: what(1) };
        let expected = serde_json::json!({
            "number": 3, "unix-ms": 5, "event": "state", "from": "running", "to": "paused", "by": "1",
        });
        assert_eq!(serde_json::to_value(event).unwrap(), expected);
    }
}
