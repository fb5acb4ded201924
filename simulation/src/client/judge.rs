//! Judges what a client reads: the next answer to its own request, in its form and in time.

use super::*;

impl State {
    /// Judges what was received, as far as it is whole.
    pub(super) fn judge(&self) {
        if self.turned_away {
            return self.wrong(format_args!("was answered, though it sent no PROXY header"));
        }
        while !self.received.borrow().is_empty() {
            let head_only = match self.expected.borrow().front() {
                Some(Expected::Answer(request, _)) => request.method == "HEAD",
                _ => false,
            };
            let read = answers::read(&self.received.borrow(), head_only);
            let answer = match read {
                Ok(None) => return,
                Ok(Some((length, answer))) => {
                    self.received.borrow_mut().drain(..length);
                    answer
                }
                Err(why) if self.expects_anything() => {
                    // Whether it was a HEAD is not known.
                    let _ = why;
                    self.received.borrow_mut().clear();
                    return;
                }
                Err(why) => {
                    self.wrong(format_args!("received no answer: {why}"));
                    self.received.borrow_mut().clear();
                    return;
                }
            };
            self.judge_answer(&answer);
        }
    }

    pub(super) fn expects_anything(&self) -> bool {
        matches!(self.expected.borrow().front(), Some(Expected::Anything))
    }

    pub(super) fn judge_answer(&self, answer: &Answer) {
        world::trace(format_args!("{} reads an answer of {}", self.name, answer.status));
        if self.told_last.get() {
            return self.wrong(format_args!("an answer follows the last one: {answer:?}"));
        }
        let mut expected = self.expected.borrow_mut();
        if answer.status == 100 {
            if !matches!(expected.front(), Some(Expected::Answer(request, _)) if request.expects_continue)
            {
                self.wrong(format_args!("was told to go on, and had not asked"));
            }
            self.interim.set(true);
            return;
        }
        let Some(next) = expected.pop_front() else {
            return self.wrong(format_args!("received an answer and had not asked: {answer:?}"));
        };
        self.told_last.set(answer.closes());
        match next {
            Expected::Anything => expected.push_front(Expected::Anything),
            Expected::Refusal if (400..600).contains(&answer.status) && answer.closes() => {
                self.asks(|said, address| said.is_refused(address, answer.status));
            }
            Expected::Refusal => self.wrong(format_args!("was to be refused, and got {answer:?}")),
            Expected::Answer(..) if answer.status == 408 && self.slow && answer.closes() => {
                self.asks(|said, address| said.is_refused(address, answer.status));
            }
            Expected::Answer(request, sent) => match self.judge_page(&request, answer) {
                Ok(told) => {
                    self.judge_time(sent);
                    self.asks(|said, address| said.is_told(address, &request, answer, told));
                    self.note(&request, told);
                }
                Err(why) => self.wrong(format_args!("{why}")),
            },
        }
    }

    /// Judges an answer, which may show the number of its own visit, or one of those that were answered for several, and
    /// that nobody else was shown.
    fn judge_page(&self, request: &Request, answer: &Answer) -> Result<Told, String> {
        let visit = match request.subject {
            Subject::Visit(visit) if self.record.is_shared(visit) => visit,
            subject => {
                let number = match subject {
                    Subject::Visit(visit) => self.record.number(visit),
                    _ => None,
                };
                return answers::judge(request, answer, number)
                    .map_err(|why| format!("{why}; the number is {number:?}"));
            }
        };
        let shows_number = server::shows_number(visit);
        for number in self.record.numbers(visit) {
            let Ok(told) = answers::judge(request, answer, number) else { continue };
            if told == Told::Welcome && shows_number && request.method != "HEAD" {
                self.record.is_shown(visit, number);
            }
            return Ok(told);
        }
        match answers::judge(request, answer, None) {
            Ok(Told::Welcome) if shows_number => {
                Err(String::from("it is welcomed with a number that is not its own"))
            }
            judged => judged,
        }
    }

    /// An answer comes within the time of a call after the answer before it, and after its request.
    pub(super) fn judge_time(&self, sent: Option<Duration>) {
        let now = world::now();
        let before = self.answered_at.replace(now);
        let since = sent.unwrap_or(now).max(before);
        if self.calm && now - since > self.deadlines.call + SPARE {
            self.wrong(format_args!("was answered after {:?}", now - since));
        }
    }

    pub(super) fn note(&self, request: &Request, told: Told) {
        self.record.answered();
        self.told.borrow_mut().push(told);
        if let Subject::Visit(visit) = request.subject {
            if told == Told::Sorry && self.record.serves(server::counter_of(visit)) {
                self.wrong(format_args!("was not welcomed, though nothing stands against it"));
            }
            if told == Told::Overloaded && !self.record.overloads() {
                self.wrong(format_args!("was refused, though there was room for all visits"));
            }
            self.record.visit(visit, |visit| match told {
                Told::Welcome => visit.welcomed = true,
                Told::Overloaded => visit.refused = true,
                Told::Sorry | Told::Nothing => {}
            });
        }
    }

    pub(super) fn wrong(&self, what: std::fmt::Arguments<'_>) {
        self.record.violation(format_args!("{} {what}", self.name));
    }

    /// The client has left. One against which nothing stood was not reset, so that it could read whatever it was
    /// answered; and it was answered, unless the server drained.
    pub(super) fn leave(&self, calm: bool, answered: bool) {
        let (requests, bytes) = (self.expected.borrow().len(), self.received.borrow().len());
        if calm && self.ended.get() == Some(End::Reset) {
            self.wrong(format_args!("was reset, though nothing stood against it"));
        }
        if calm && bytes > 0 {
            self.wrong(format_args!("was left with {bytes} bytes of an answer"));
        }
        if answered && !self.told_last.get() && requests > 0 {
            self.wrong(format_args!(
                "was not answered, though nothing stood against it: {requests} requests are left"
            ));
        }
    }
}
