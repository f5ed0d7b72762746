// What a run tells while it works: rows of numbers as JSON lines and as TensorBoard events, and
// one line of progress on the terminal.
#ifndef PVDM_LOG_H
#define PVDM_LOG_H

#include <stdint.h>

#include "runtime/image.h"

typedef struct PvLog PvLog;

// Opens folder/log.jsonl for appending and folder/events.out.tfevents.<time>.<host>. On resume,
// rows of log.jsonl with a step > `step` are cut off (step < 0: the file is started anew), and
// TensorBoard is told to forget them.
PvLog *pv_log_open(const char *folder, int64_t step, PvError *error);
void pv_log_number(PvLog *log, const char *name, double value); // goes into the next row
// Writes the row {"step": step, "time": seconds since start, name: value...}; not finite: null
// (JSON has no such number), and NaN in the events. A full disk is told once, on stderr.
void pv_log_row(PvLog *log, int64_t step);
void pv_log_image(PvLog *log, int64_t step, const char *name, const PvImage *image);
void pv_log_close(PvLog *log); // NULL is fine

// A row of log.jsonl read back for charts: x = step, y = value of `name`; malloc'ed arrays.
bool pv_log_read(const char *path, const char *name, double **x, double **y, size_t *count,
                 PvError *error);

// Draws folder/loss.png from folder/log.jsonl: the values of each name (at most 6 of them) as
// points, their running mean as a line. What keeps it from that is told on stderr.
void pv_log_chart(const char *folder, const char *title, const char *const *names, size_t count);

typedef struct PvProgress PvProgress;

// done of total units ("step", "clip"); total 0: not known. A bar with rate and time left on a
// terminal (stderr), at most 10 times a second; elsewhere plain lines, at most one in 10 seconds.
PvProgress *pv_progress_new(const char *unit, int64_t done, int64_t total);
void pv_progress_at(PvProgress *progress, int64_t done, const char *note); // note: "loss 0.12"
void pv_progress_end(PvProgress *progress); // NULL is fine

// TensorBoard's record format, for tests: masked crc32c of bytes.
uint32_t pv_crc32c_masked(const void *data, size_t size);

#endif
