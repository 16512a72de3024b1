//! Speaking to a machine that another process runs.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::SOCKET;
use crate::vm::{self, DirectoryError, Ended, Found, Name};

/// How long an answer may take that is given at once.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer. The tree of a machine with hundreds of processors has some hundred KB.
const LONGEST_ANSWER: u64 = 16 << 20;

/// Why a machine was not asked, or did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No such machine.
    #[error("there is no VM called {0}; `lodger ps` lists those that there are")]
    Unknown(Name),
    /// Its process is gone.
    #[error(
        "the VM {0} is dead: its process was killed; `lodger rm {0}` clears away what it has left, as the next start does"
    )]
    Dead(Name),
    /// It has ended, and says how.
    #[error("the VM {name} has ended with status {}: {}", ended.status, ended.in_short())]
    Ended {
        /// What it was called.
        name: Name,
        /// How it ended.
        ended: Box<Ended>,
    },
    /// Its directory cannot be looked at.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// It does not listen.
    #[error("the VM {name} has no control socket that answers: {source}")]
    Connect {
        /// What it is called.
        name: Name,
        /// What the operating system said.
        source: io::Error,
    },
    /// It went away, or does not answer in time.
    #[error("the VM {name} does not answer: {source}")]
    Lost {
        /// What it is called.
        name: Name,
        /// What the operating system said.
        source: io::Error,
    },
    /// What it answered cannot be understood.
    #[error("the VM {name} speaks another protocol than this lodger: {what}")]
    Protocol {
        /// What it is called.
        name: Name,
        /// What was not understood.
        what: String,
    },
    /// It refused.
    #[error("{message}")]
    Refused {
        /// A word for programs.
        code: String,
        /// A sentence for people.
        message: String,
    },
}

/// A connection to a machine.
#[derive(Debug)]
pub struct Client {
    found: Found,
    reader: BufReader<UnixStream>,
    asked: u64,
}

impl Client {
    /// Connects to the machine of this name.
    pub fn connect(name: &Name) -> Result<Self, ClientError> {
        match vm::find(name)? {
            None => Err(ClientError::Unknown(name.clone())),
            Some(Found { ended: Some(ended), .. }) => {
                Err(ClientError::Ended { name: name.clone(), ended: Box::new(ended) })
            }
            Some(found) if !found.alive => Err(ClientError::Dead(name.clone())),
            Some(found) => Self::connect_to(found, PATIENCE),
        }
    }

    /// Connects to a machine that was found; answers that are given at once may take `patience`.
    pub fn connect_to(found: Found, patience: Duration) -> Result<Self, ClientError> {
        let connect = || {
            let stream = UnixStream::connect(found.path.join(SOCKET))?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            Ok(stream)
        };
        match connect() {
            Ok(stream) => Ok(Self { found, reader: BufReader::new(stream), asked: 0 }),
            Err(source) => Err(ClientError::Connect { name: found.name, source }),
        }
    }

    /// The machine.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Asks for something, and gives the answer.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, ClientError> {
        self.ask(method, params)?;
        self.answer()
    }

    /// Asks for something that takes as long as it takes, and gives the answer.
    pub fn call_patiently(&mut self, method: &str, params: Value) -> Result<Value, ClientError> {
        self.be_patient()?;
        self.call(method, params)
    }

    /// The same, and tells `tell` how far the work is whenever it is told.
    pub fn call_watching(
        &mut self,
        method: &str,
        params: Value,
        tell: &mut dyn FnMut(&Value),
    ) -> Result<Value, ClientError> {
        self.be_patient()?;
        self.ask(method, params)?;
        self.answer_watching(tell)
    }

    /// From now on answers and events may take as long as they take.
    pub fn be_patient(&mut self) -> Result<(), ClientError> {
        self.reader.get_ref().set_read_timeout(None).map_err(|source| self.lost(source))
    }

    /// Asks for something that leads to the machine's end, waits for that, and says how it ended. Both are asked at
    /// once: a machine that has stopped parts with clients that want nothing.
    pub fn end(&mut self, method: &str, params: Value) -> Result<Value, ClientError> {
        self.be_patient()?;
        let lines = self.line(method, params) + &self.line("wait", json!({}));
        self.write(&lines)?;
        self.answer()?;
        self.answer()
    }

    fn ask(&mut self, method: &str, params: Value) -> Result<(), ClientError> {
        let line = self.line(method, params);
        self.write(&line)
    }

    fn line(&mut self, method: &str, params: Value) -> String {
        self.asked += 1;
        json!({ "id": self.asked, "method": method, "params": params }).to_string() + "\n"
    }

    fn write(&mut self, lines: &str) -> Result<(), ClientError> {
        self.reader.get_mut().write_all(lines.as_bytes()).map_err(|source| self.lost(source))
    }

    fn answer(&mut self) -> Result<Value, ClientError> {
        self.answer_watching(&mut |_| ())
    }

    fn answer_watching(&mut self, tell: &mut dyn FnMut(&Value)) -> Result<Value, ClientError> {
        let mut answer = loop {
            let line = self.receive()?.ok_or_else(|| self.lost(io::ErrorKind::UnexpectedEof.into()))?;
            match line.get("progress") {
                Some(progress) => tell(progress),
                None => break line,
            }
        };
        if let Some(error) = answer.get("error") {
            let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
            return Err(ClientError::Refused { code: text("code"), message: text("message") });
        }
        match answer.get_mut("result") {
            Some(result) => Ok(result.take()),
            None => Err(self.strange("an answer without a result")),
        }
    }

    /// The next line: an answer or an event. Nothing when the machine has hung up.
    pub fn receive(&mut self) -> Result<Option<Value>, ClientError> {
        let mut line = Vec::new();
        let read = io::Read::take(&mut self.reader, LONGEST_ANSWER).read_until(b'\n', &mut line);
        match read {
            Err(source) => Err(self.lost(source)),
            Ok(0) => Ok(None),
            Ok(_) => match serde_json::from_slice(&line) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(self.strange(&error.to_string())),
            },
        }
    }

    /// The connection itself, for what is carried in place of lines, and what of it has come already.
    pub fn into_stream(self) -> (UnixStream, Vec<u8>) {
        let come = self.reader.buffer().to_vec();
        (self.reader.into_inner(), come)
    }

    fn lost(&self, source: io::Error) -> ClientError {
        ClientError::Lost { name: self.found.name.clone(), source }
    }

    fn strange(&self, what: &str) -> ClientError {
        ClientError::Protocol { name: self.found.name.clone(), what: what.to_owned() }
    }
}
