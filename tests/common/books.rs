//! What a server's last line says of its visits.

/// How many visits ended in each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Books {
    pub welcomed: u64,
    pub erred: u64,
    pub refused: u64,
    pub abandoned: u64,
}

impl Books {
    pub fn read(line: &str) -> Self {
        let said = |word: &str| {
            let before = line.split_once(word).expect(line).0.trim_end();
            let before = before.trim_end_matches(" visits").trim_end_matches(" visit");
            before.rsplit(' ').next().unwrap().parse().expect(line)
        };
        Self {
            welcomed: said("welcomed"),
            erred: said("erred"),
            refused: said("refused"),
            abandoned: said("abandoned"),
        }
    }

    /// The books of several servers as one.
    pub fn sum(all: &[Self]) -> Self {
        all.iter().fold(Self { welcomed: 0, erred: 0, refused: 0, abandoned: 0 }, |sum, one| Self {
            welcomed: sum.welcomed + one.welcomed,
            erred: sum.erred + one.erred,
            refused: sum.refused + one.refused,
            abandoned: sum.abandoned + one.abandoned,
        })
    }

    /// Visits that were started: each is in one book.
    pub fn ended(&self) -> u64 {
        self.welcomed + self.erred + self.refused + self.abandoned
    }

    /// The contract: what was welcomed is counted, and what was counted is in a book.
    #[track_caller]
    pub fn check(&self, counted: u64) {
        assert!(self.welcomed <= counted, "{self:?}, {counted} counted");
        assert!(
            counted <= self.welcomed + self.erred + self.abandoned,
            "{self:?}, {counted} counted"
        );
    }
}
