//! The shell of a detached VM, by its control socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Answer, LIMIT, Session};

/// A client that is attached to a VM's console, where its guest has a shell.
pub struct Attached {
    socket: UnixStream,
    /// What was printed since it came.
    text: String,
    asked: u32,
}

impl Attached {
    #[track_caller]
    pub fn to(session: &Session, name: &str) -> Self {
        let mut socket = session.socket(name);
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket.write_all(b"{\"method\":\"attach\"}\n").unwrap();
        let mut this = Self { socket, text: String::new(), asked: 0 };
        this.expect("{\"id\":null,\"result\":{}}\n");
        this.text.clear();
        this
    }

    /// Waits until the guest's first process offers its shell, and has that repeat nothing of what is typed.
    #[track_caller]
    pub fn prepare_shell(&mut self) {
        // What was printed before somebody came is not shown to him.
        self.type_in("\n");
        self.expect("# ");
        self.type_in("stty -echo; exec sh 2>/dev/null\n");
        self.answer("true");
    }

    /// Has the shell run a command in itself, not in a child; returns what it printed when it has succeeded.
    #[track_caller]
    pub fn answer(&mut self, command: &str) -> String {
        self.asked += 1;
        let number = self.asked;
        // A shell that repeats what it is given does not print these marks by that: there they are written otherwise.
        self.type_in(&format!(
            "echo BEGIN-$(({number})); {{ {command}\n}} 2>&1; echo STATUS-$?-END-$(({number}))-\n"
        ));
        let (begin, end) = (format!("BEGIN-{number}\r\n"), format!("-END-{number}-\r\n"));
        self.expect(&end);
        let answer = self.text.split_once(&begin).and_then(|(_, text)| text.split_once(&end));
        let (answer, status) = answer.and_then(|(answer, _)| answer.rsplit_once("STATUS-")).unwrap();
        let answer = Answer { text: answer.replace('\r', ""), status: status.parse().unwrap() }.ok();
        self.text.clear();
        answer.text
    }

    #[track_caller]
    fn type_in(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until this was printed.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        let start = Instant::now();
        let mut bytes = [0; 4096];
        while !self.text.contains(text) {
            match self.socket.read(&mut bytes) {
                Ok(0) => panic!("the VM has ended: {}", self.text),
                Ok(count) => self.text.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            assert!(start.elapsed() < LIMIT, "{text:?} is not in {:?}", self.text);
        }
    }
}
