// Signals that ask a long command to end: Ctrl-C, SIGTERM, a terminal that is closed.
#ifndef PV_STOP_H
#define PV_STOP_H

// From now on SIGINT, SIGTERM and SIGHUP (unless it is ignored, as under nohup) are only noted;
// a second one of a kind ends the process at once.
void pv_stop_catch(void);

// The signal that came, or 0.
int pv_stop_signal(void);

// If one came, ends the process as that signal would have: a shell's loop ends too. To be called
// when everything is written.
void pv_stop_end(void);

#endif
