//! Which request is legal in which state, and what comes of it. Knows nothing of machines: it is all there is to
//! decide.

use std::fmt;

use serde::Serialize;

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is put together, and no processor has run.
    Created,
    /// The guest runs.
    Running,
    /// The guest stands still, between two instructions, and no request of it is under way.
    Paused,
    /// The guest was asked to end, and runs.
    Stopping,
    /// It has ended, for good.
    Stopped,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Created, Self::Running, Self::Paused, Self::Stopping, Self::Stopped];

    /// Its name, as in listings and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What can happen to a machine's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It shall run for the first time.
    Start,
    /// It shall stand still.
    Pause,
    /// It shall run on.
    Resume,
    /// The guest shall end.
    Stop,
    /// It shall end at once.
    Kill,
    /// Something is to be done while it stands still; then it goes on as before. A snapshot is such a thing.
    AtRest,
    /// It has ended by itself.
    End,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Start, Self::Pause, Self::Resume, Self::Stop, Self::Kill, Self::AtRest, Self::End];
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is carried out, and leads to this state.
    Go(State),
    /// There is nothing to do: what was asked for is so already.
    Already,
    /// It cannot be.
    Refused,
}

/// The table.
pub fn answer(state: State, request: Kind) -> Answer {
    use Answer::{Already, Go, Refused};
    use State::{Created, Paused, Running, Stopped, Stopping};
    match (state, request) {
        (Created, Kind::Start) | (Paused, Kind::Resume) => Go(Running),
        // One that is held from its beginning on has not run yet, and does when it is resumed.
        (Created | Running, Kind::Pause) => Go(Paused),
        // Who has never run has nothing to end, and nobody to ask.
        (Created, Kind::Stop) => Go(Stopped),
        (Running | Paused, Kind::Stop) => Go(Stopping),
        (Created | Running | Paused | Stopping, Kind::Kill) => Go(Stopped),
        // A processor may come to its end just when it is to pause.
        (Running | Paused | Stopping, Kind::End) => Go(Stopped),
        (Created | Running | Paused, Kind::AtRest) => Go(state),
        (Running, Kind::Start | Kind::Resume) | (Paused, Kind::Pause) => Already,
        // A second request to stop may be a more impatient one.
        (Stopping, Kind::Stop) => Go(Stopping),
        (Stopped, Kind::Stop | Kind::Kill | Kind::End) => Already,
        (Created, Kind::Resume | Kind::End)
        | (Paused, Kind::Start)
        | (Stopping | Stopped, Kind::Start | Kind::Pause | Kind::Resume | Kind::AtRest) => Refused,
    }
}

/// A request that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a VM that {} cannot be {}", is(.state), participle(.request))]
pub struct Refusal {
    /// What the machine was doing.
    pub state: State,
    /// What was asked for.
    pub request: Kind,
}

fn is(state: &State) -> &'static str {
    match state {
        State::Created => "has not been started",
        State::Running => "is running",
        State::Paused => "is paused",
        State::Stopping => "is stopping",
        State::Stopped => "has stopped",
    }
}

fn participle(request: &Kind) -> &'static str {
    match request {
        Kind::Start => "started",
        Kind::Pause => "paused",
        Kind::Resume => "resumed",
        Kind::Stop => "stopped",
        Kind::Kill => "killed",
        Kind::AtRest => "held still",
        Kind::End => "at its end",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_in_every_state_has_the_answer_that_is_written_here() {
        use Answer::{Already as Has, Go, Refused as No};
        use State::{Created, Paused, Running, Stopped, Stopping};
        #[rustfmt::skip]
        let table = [
            //            start        pause       resume       stop          kill         at rest      end
            (Created,  [Go(Running), Go(Paused), No,          Go(Stopped),  Go(Stopped), Go(Created), No]),
            (Running,  [Has,         Go(Paused), Has,         Go(Stopping), Go(Stopped), Go(Running), Go(Stopped)]),
            (Paused,   [No,          Has,        Go(Running), Go(Stopping), Go(Stopped), Go(Paused),  Go(Stopped)]),
            (Stopping, [No,          No,         No,          Go(Stopping), Go(Stopped), No,          Go(Stopped)]),
            (Stopped,  [No,          No,         No,          Has,          Has,         No,          Has]),
        ];
        assert_eq!(table.map(|(state, _)| state), State::ALL);
        for (state, answers) in table {
            for (request, expected) in Kind::ALL.into_iter().zip(answers) {
                assert_eq!(answer(state, request), expected, "{request:?} when {state:?}");
            }
        }
    }

    #[test]
    fn nothing_leads_out_of_the_end_and_everything_can_lead_to_it() {
        for request in Kind::ALL {
            assert!(!matches!(answer(State::Stopped, request), Answer::Go(_)), "{request:?}");
        }
        for state in State::ALL.into_iter().filter(|&state| state != State::Stopped) {
            assert_eq!(answer(state, Kind::Kill), Answer::Go(State::Stopped), "{state:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_is_so_and_what_cannot_be() {
        let said = Refusal { state: State::Stopping, request: Kind::Pause }.to_string();
        assert_eq!(said, "a VM that is stopping cannot be paused");
    }

    #[test]
    fn states_are_called_the_same_everywhere() {
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.to_string());
        }
    }
}
