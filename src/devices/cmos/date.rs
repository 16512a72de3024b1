//! Civil dates (Gregorian calendar, UTC) and seconds since 1970, for whatever a guest may write into a clock.

/// A moment as a calendar and a clock show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

const SECONDS_PER_DAY: i64 = 86_400;
/// The calendar repeats itself after 400 years.
const DAYS_PER_CYCLE: i64 = 146_097;
/// From 1 March of the year 0 to 1 January 1970.
const DAYS_TO_1970: i64 = 719_468;

impl Date {
    /// The date that many seconds after the beginning of 1970.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let days = seconds.div_euclid(SECONDS_PER_DAY) + DAYS_TO_1970;
        let second_of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        let (cycle, day_of_cycle) = (days.div_euclid(DAYS_PER_CYCLE), days.rem_euclid(DAYS_PER_CYCLE));
        // Years begin in March here, so that a leap day is the last day of its year. The divisors are the
        // lengths of 4, 100 and 400 years less one day each.
        let year_of_cycle =
            (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
        let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
        // Months from March on have 153 days in each five.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: cycle * 400 + year_of_cycle + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            hour: (second_of_day / 3_600) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            second: (second_of_day % 60) as u8,
        }
    }

    /// Seconds since the beginning of 1970. Fields that no date has are brought to the nearest it can have.
    pub(super) fn to_seconds(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let first = days_to_first_of(self.year, month);
        let length = days_to_first_of(self.year, month + 1) - first;
        let day = i64::from(self.day).clamp(1, length);
        let [hour, minute, second] =
            [self.hour.min(23), self.minute.min(59), self.second.min(59)].map(i64::from);
        (first + day - 1) * SECONDS_PER_DAY + hour * 3_600 + minute * 60 + second
    }

    /// The day of the week as the clock chip counts: Sunday is 1.
    pub(super) fn weekday(self) -> u8 {
        // 1 January 1970 was a Thursday.
        ((self.to_seconds().div_euclid(SECONDS_PER_DAY) + 4).rem_euclid(7) + 1) as u8
    }
}

/// Days from the beginning of 1970 to the first of a month; month 13 is January of the next year.
fn days_to_first_of(year: i64, month: i64) -> i64 {
    let (year, month_from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * month_from_march + 2) / 5 - DAYS_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(year: i64, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Date {
        Date { year, month, day, hour, minute, second }
    }

    #[test]
    fn known_moments_are_where_they_belong() {
        for (seconds, expected, weekday) in [
            (0, date(1970, 1, 1, 0, 0, 0), 5),
            (951_782_400, date(2000, 2, 29, 0, 0, 0), 3),
            (1_000_000_000, date(2001, 9, 9, 1, 46, 40), 1),
            (4_107_542_399, date(2100, 2, 28, 23, 59, 59), 1),
            (4_107_542_400, date(2100, 3, 1, 0, 0, 0), 2),
            (-1, date(1969, 12, 31, 23, 59, 59), 4),
        ] {
            assert_eq!(Date::from_seconds(seconds), expected);
            assert_eq!(expected.to_seconds(), seconds);
            assert_eq!(expected.weekday(), weekday, "{expected:?}");
        }
    }

    #[test]
    fn every_day_of_ten_thousand_years_follows_the_one_before() {
        let mut expected = date(0, 1, 1, 12, 34, 56);
        let first = expected.to_seconds();
        for index in 0..10_000 * 365 + 2_425 {
            let seconds = first + index * SECONDS_PER_DAY;
            assert_eq!(Date::from_seconds(seconds), expected);
            assert_eq!(expected.to_seconds(), seconds);
            let leap = expected.year % 4 == 0 && (expected.year % 100 != 0 || expected.year % 400 == 0);
            let length = match expected.month {
                2 => 28 + u8::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected.day += 1;
            if expected.day > length {
                (expected.month, expected.day) = (expected.month + 1, 1);
            }
            if expected.month > 12 {
                (expected.year, expected.month) = (expected.year + 1, 1);
            }
        }
        assert_eq!(expected.year, 10_000);
    }

    #[test]
    fn impossible_fields_become_the_nearest_possible() {
        let nearest = |impossible: Date| Date::from_seconds(impossible.to_seconds());
        assert_eq!(nearest(date(2023, 2, 31, 24, 60, 99)), date(2023, 2, 28, 23, 59, 59));
        assert_eq!(nearest(date(2023, 0, 0, 0, 0, 0)), date(2023, 1, 1, 0, 0, 0));
        assert_eq!(nearest(date(2023, 255, 255, 255, 255, 255)), date(2023, 12, 31, 23, 59, 59));
    }

    #[test]
    fn the_ends_of_time_do_no_harm() {
        for seconds in [i64::MIN, i64::MIN + 1, i64::MAX] {
            Date::from_seconds(seconds);
        }
    }
}
