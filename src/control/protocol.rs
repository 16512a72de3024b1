//! What goes over the control socket, each in a line of JSON. `docs/control-protocol.md` says what it means.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::snapshot;
use crate::vm::driver::{Ending, News, SnapshotError, State, Step, Taken};
use crate::vm::inspect::RestoredFrom;
use crate::vm::{self, CannotCapture, DiskMode, DisksError};

/// The protocol's version: what was there in it means the same as long as the number is the same.
pub const PROTOCOL: u32 = 1;
/// How long a guest has to end itself where nobody says.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a client wants.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Version,
    Status,
    Inspect,
    Pause,
    Resume,
    Stop { patience: Duration },
    Kill,
    Wait,
    Events,
    Balloon { target: Option<u64> },
    Attach,
    Logs { follow: bool },
    Snapshot(Wanted),
}

/// A snapshot that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub directory: PathBuf,
    pub diff: Option<Diff>,
    pub disks: Option<DiskMode>,
    pub stop: bool,
}

/// On which snapshot a diff builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Diff {
    /// The last one.
    Last,
    /// The one that is there by now.
    On(PathBuf),
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Failure {
    pub fn new(code: &'static str, message: impl ToString) -> Self {
        Self { code, message: message.to_string() }
    }
}

/// What a line asks for, and the id with which it wants to be answered.
pub fn parse(line: &[u8]) -> (Value, Result<Call, Failure>) {
    let wrong = |why: &str| Failure::new("parse", format!("this is no request: {why}"));
    let mut fields = match serde_json::from_slice(line) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return (Value::Null, Err(wrong(FORM))),
        Err(error) => {
            let why = format!("{FORM}; what stands at byte {} is no part of one", error.column());
            return (Value::Null, Err(wrong(&why)));
        }
    };
    // Whatever else is wrong, who asked is told so by this.
    let id = fields.remove("id").unwrap_or_default();
    if !matches!(id, Value::Null | Value::Number(_) | Value::String(_)) {
        return (Value::Null, Err(wrong("an id is a number or a text")));
    }
    let call = match (fields.remove("method"), fields.remove("params").unwrap_or_default()) {
        (Some(Value::String(method)), Value::Object(params)) => {
            refuse_others(&fields, wrong, &method, params)
        }
        (Some(Value::String(method)), Value::Null) => refuse_others(&fields, wrong, &method, Map::new()),
        (Some(Value::String(_)), _) => Err(wrong("params are an object, as in {\"timeout-ms\": 5000}")),
        (Some(_), _) => Err(wrong("a method is a text")),
        (None, _) => Err(wrong("it has no method")),
    };
    (id, call)
}

/// What a request looks like.
const FORM: &str = "a request is one JSON object, as in {\"id\": 1, \"method\": \"status\"}";

fn refuse_others(
    others: &Map<String, Value>,
    wrong: impl Fn(&str) -> Failure,
    method: &str,
    params: Map<String, Value>,
) -> Result<Call, Failure> {
    match others.keys().next() {
        Some(other) => Err(wrong(&format!("it has id, method and params, and no field {}", short(other)))),
        None => call(method, Params { method, fields: params, known: Vec::new() }),
    }
}

fn call(method: &str, mut params: Params<'_>) -> Result<Call, Failure> {
    let call = match method {
        "version" | "ping" => Call::Version,
        "status" => Call::Status,
        "inspect" => Call::Inspect,
        "pause" => Call::Pause,
        "resume" => Call::Resume,
        "kill" => Call::Kill,
        "wait" => Call::Wait,
        "events" => Call::Events,
        "attach" => Call::Attach,
        "stop" => {
            let patience = params.number("timeout-ms", "a number of milliseconds")?;
            Call::Stop { patience: patience.map_or(PATIENCE, Duration::from_millis) }
        }
        "balloon" => Call::Balloon { target: params.number("target", "a number of bytes")? },
        "snapshot" => Call::Snapshot(snapshot(&mut params)?),
        "logs" => Call::Logs { follow: params.switch("follow")? },
        // What it said may be as long as a line.
        _ => {
            return Err(Failure::new(
                "unknown-method",
                "there is no such method; there are version, ping, status, inspect, pause, resume, stop, kill, wait, \
                 events, balloon, attach, logs and snapshot",
            ));
        }
    };
    params.finish().map(|()| call)
}

fn snapshot(params: &mut Params<'_>) -> Result<Wanted, Failure> {
    let directory = params.take("directory");
    let directory = directory.ok_or_else(|| params.wrong("there has to be a directory"))?;
    let diff = match params.take("diff") {
        None | Some(Value::Bool(false)) => None,
        Some(Value::Bool(true)) => Some(Diff::Last),
        Some(base @ Value::String(_)) => Some(Diff::On(params.path("diff", &base)?)),
        Some(_) => return Err(params.wrong("diff is true, false or a path")),
    };
    let disks = match params.take("disks") {
        None => None,
        Some(mode) => {
            let mode = mode.as_str().and_then(|mode| mode.parse().ok());
            Some(mode.ok_or_else(|| params.wrong("disks is copy, overlay or reference"))?)
        }
    };
    Ok(Wanted { directory: params.path("directory", &directory)?, diff, disks, stop: params.switch("stop")? })
}

/// The params of a request: what is taken from them is known, and what is left over is not.
struct Params<'a> {
    method: &'a str,
    fields: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Params<'_> {
    fn wrong(&self, why: &str) -> Failure {
        Failure::new("params", format!("the params of {}: {why}", self.method))
    }

    /// What is null is not there.
    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.fields.remove(key).filter(|value| !value.is_null())
    }

    fn number(&mut self, key: &'static str, what: &str) -> Result<Option<u64>, Failure> {
        let Some(value) = self.take(key) else { return Ok(None) };
        value.as_u64().map(Some).ok_or_else(|| self.wrong(&format!("{key} is {what}, not negative")))
    }

    fn switch(&mut self, key: &'static str) -> Result<bool, Failure> {
        let Some(value) = self.take(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(&format!("{key} is true or false")))
    }

    /// A path. Where the client is does not count here.
    fn path(&self, key: &str, value: &Value) -> Result<PathBuf, Failure> {
        match value.as_str() {
            Some(text) if text.contains('\0') => {
                Err(self.wrong(&format!("{key} has a NUL in it, and no path can have that")))
            }
            Some(text) if Path::new(text).is_absolute() => Ok(text.into()),
            _ => Err(self.wrong(&format!("{key} is an absolute path"))),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        let Some(other) = self.fields.keys().next() else { return Ok(()) };
        let known = match self.known.as_slice() {
            [] => "there are none".to_owned(),
            known => format!("there are {}", known.join(", ")),
        };
        Err(self.wrong(&format!("there is no {}; {known}", short(other))))
    }
}

/// What somebody wrote, as far as it is short.
fn short(text: &str) -> String {
    let mut first: String = text.chars().take(40).collect();
    if first.len() < text.len() {
        first.push('…');
    }
    format!("{first:?}")
}

/// An answer, with the line's end.
pub fn answer(id: &Value, result: Result<Value, Failure>) -> Vec<u8> {
    let value = match result {
        Ok(result) => json!({ "id": id, "result": result }),
        Err(Failure { code, message }) => json!({ "id": id, "error": { "code": code, "message": message } }),
    };
    line(&value)
}

/// An event, with the line's end.
pub fn event(news: &News) -> Vec<u8> {
    match news {
        News::Event(event) => line(&serde_json::to_value(event).unwrap_or_default()),
        News::Lost(count) => line(&json!({ "event": "lost", "count": count })),
    }
}

/// How far the work on a request is, with the line's end.
pub fn progress(id: &Value, step: Step) -> Vec<u8> {
    line(&json!({ "id": id, "progress": step }))
}

/// A snapshot that was taken.
pub fn taken(taken: &Taken) -> Value {
    let Taken { directory, info, size, disks, copied, stopped_for, state } = taken;
    json!({
        "directory": directory.display().to_string(),
        "id": info.id_in_hex(),
        "size": size,
        "memory-size": info.memory_size,
        "disks": disks,
        "copied": copied,
        "stopped-for-us": u64::try_from(stopped_for.as_micros()).unwrap_or(u64::MAX),
        "state": state,
    })
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        let code = match &error {
            SnapshotError::Busy
            | SnapshotError::Failed(
                vm::Error::Snapshot(snapshot::Error::Busy { .. }) | vm::Error::Capture(CannotCapture::Busy),
            ) => "busy",
            SnapshotError::Refused(_)
            | SnapshotError::RunOn { .. }
            | SnapshotError::Failed(
                vm::Error::Save(_)
                | vm::Error::Capture(_)
                | vm::Error::Disks(DisksError::Mode { .. } | DisksError::Replaced { .. }),
            ) => "state",
            SnapshotError::Failed(_) => "failed",
        };
        Self::new(code, error)
    }
}

fn line(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// What a machine is, in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// What it is called.
    pub name: String,
    /// The process that runs it.
    pub pid: u32,
    /// What it does: a [`State`].
    pub state: String,
    /// How many processors it has.
    pub cpus: usize,
    /// How much memory, in bytes.
    pub memory: u64,
    /// How many seconds ago it started to run.
    pub uptime: Option<f64>,
    /// The snapshot with which it began, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_from: Option<RestoredFrom>,
}

/// How a machine stands after a transition.
pub fn state(state: State) -> Value {
    json!({ "state": state })
}

/// How a machine ended.
pub fn ending(ending: &Ending) -> Value {
    serde_json::to_value(ending).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Call, Failure> {
        parse(text.as_bytes()).1
    }

    fn snapshot(directory: &str, diff: Option<Diff>, disks: Option<DiskMode>, stop: bool) -> Call {
        Call::Snapshot(Wanted { directory: directory.into(), diff, disks, stop })
    }

    #[test]
    fn requests_mean_what_the_protocol_says() {
        for (text, expected) in [
            (r#"{"id":1,"method":"ping"}"#, Call::Version),
            (r#"{"method":"pause","params":{}}"#, Call::Pause),
            (r#"{"method":"pause","params":null}"#, Call::Pause),
            (r#"{"method":"balloon","params":{"target":null}}"#, Call::Balloon { target: None }),
            (r#"{"method":"stop"}"#, Call::Stop { patience: PATIENCE }),
            (
                r#"{"method":"stop","params":{"timeout-ms":1500}}"#,
                Call::Stop { patience: Duration::from_millis(1500) },
            ),
            (r#"{"method":"balloon"}"#, Call::Balloon { target: None }),
            (r#"{"method":"balloon","params":{"target":4096}}"#, Call::Balloon { target: Some(4096) }),
            (r#"{"method":"logs","params":{"follow":true}}"#, Call::Logs { follow: true }),
            (r#"{"method":"logs"}"#, Call::Logs { follow: false }),
            (r#"{"method":"snapshot","params":{"directory":"/a/b"}}"#, snapshot("/a/b", None, None, false)),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","stop":true}}"#,
                snapshot("/a", None, None, true),
            ),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","diff":true}}"#,
                snapshot("/a", Some(Diff::Last), None, false),
            ),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","diff":"/b"}}"#,
                snapshot("/a", Some(Diff::On("/b".into())), None, false),
            ),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","disks":"overlay"}}"#,
                snapshot("/a", None, Some(DiskMode::Overlay), false),
            ),
        ] {
            assert_eq!(parsed(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_reason() {
        for (text, code, said) in [
            ("", "parse", "no request"),
            ("pause", "parse", "no request"),
            ("[]", "parse", "no request"),
            (r#"{"id":1}"#, "parse", "method"),
            (r#"{"id":[1],"method":"ping"}"#, "parse", "an id is"),
            (r#"{"method":"ping","more":1}"#, "parse", "more"),
            (r#"{"method":"ping","params":[]}"#, "parse", "params are an object"),
            (r#"{"method":7}"#, "parse", "a method is a text"),
            ("{\"method\":\"ping\"", "parse", "at byte 16"),
            (r#"{"method":"teleport"}"#, "unknown-method", "there are version"),
            (r#"{"method":"pause","params":{"now":true}}"#, "params", "now"),
            (r#"{"method":"stop","params":{"timeout-ms":-1}}"#, "params", "the params of stop"),
            (r#"{"method":"snapshot"}"#, "params", "directory"),
            (r#"{"method":"snapshot","params":{"directory":"a/b"}}"#, "params", "an absolute path"),
            (r#"{"method":"snapshot","params":{"directory":""}}"#, "params", "an absolute path"),
            (r#"{"method":"snapshot","params":{"directory":"/a","diff":"b"}}"#, "params", "an absolute path"),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","diff":1}}"#,
                "params",
                "true, false or a path",
            ),
            (r#"{"method":"balloon","params":{"target":"4M"}}"#, "params", "target is a number of bytes"),
            (r#"{"method":"balloon","params":{"tarket":1}}"#, "params", "no \"tarket\"; there are target"),
            (r#"{"method":"logs","params":{"follow":1}}"#, "params", "follow is true or false"),
            (r#"{"method":"snapshot","params":{"directory":"/a","disks":"b"}}"#, "params", "copy, overlay"),
            (r#"{"method":"snapshot","params":{"directory":"/a\u0000b"}}"#, "params", "directory has a NUL"),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","diff":"/\u0000"}}"#,
                "params",
                "diff has a NUL",
            ),
        ] {
            let failure = parsed(text).unwrap_err();
            assert_eq!(failure.code, code, "{text}");
            assert!(failure.message.contains(said), "{text}: {}", failure.message);
        }
    }

    /// Nobody who reads it knows what this program is written in.
    #[test]
    fn whatever_is_wrong_it_is_said_with_the_id_and_in_the_protocols_words() {
        for rest in [
            r#""method":"ping","more":1"#,
            r#""method":"pause","params":[]"#,
            r#""params":{}"#,
            r#""method":null"#,
            r#""method":"stop","params":{"timeout-ms":"soon"}"#,
            r#""method":"snapshot","params":{"directory":7}"#,
            r#""method":"kill","params":{"now":{}}"#,
        ] {
            let (id, call) = parse(format!("{{{rest},\"id\":\"mine\"}}").as_bytes());
            assert_eq!(id, "mine", "{rest}");
            let said = call.unwrap_err().message;
            for word in ["expected", "invalid type", "unknown field", "u64", "map", "column", "string"] {
                assert!(!said.contains(word), "{rest}: {said}");
            }
        }
        let long = format!("{{\"method\":\"ping\",\"{}\":1}}", "x".repeat(60_000));
        assert!(parsed(&long).unwrap_err().message.len() < 200);
    }

    #[test]
    fn ids_come_back_as_they_were() {
        for id in [json!(7), json!("seven"), json!(-1.5), Value::Null] {
            let (read, _) = parse(json!({ "id": id, "method": "ping" }).to_string().as_bytes());
            assert_eq!(read, id);
        }
        assert_eq!(
            String::from_utf8(answer(&json!(7), Err(Failure::new("state", "no")))).unwrap(),
            "{\"error\":{\"code\":\"state\",\"message\":\"no\"},\"id\":7}\n"
        );
    }

    #[test]
    fn deeply_nested_and_huge_values_are_refused_and_nothing_else_happens() {
        for text in
            ["[".repeat(60_000), "{\"a\":".repeat(10_000), format!("{{\"method\":{}}}", "9".repeat(60_000))]
        {
            assert_eq!(parsed(&text).unwrap_err().code, "parse");
        }
    }
}
