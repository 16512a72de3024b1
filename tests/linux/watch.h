// The watched work of pauses.rs.
#ifndef WATCH_H
#define WATCH_H

// Works on /dev/vda and looks at its clocks, until it is told on the console to end.
void watch(void);

#endif
