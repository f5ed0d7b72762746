// One line of progress: a bar on a terminal, plain lines elsewhere. See log.h.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "runtime/log.h"

struct PvProgress {
    char *unit;
    int64_t first, done, total, told; // told: `done` of the line last printed
    double start, shown;              // seconds; shown: when that was
    bool terminal, bar;               // bar: it stands on the line now
    char note[160];
};

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

PvProgress *pv_progress_new(const char *unit, int64_t done, int64_t total)
{
    PvProgress *progress = pv_alloc(sizeof *progress);
    const char *term = getenv("TERM");
    progress->unit = pv_strdup(unit);
    progress->first = progress->done = progress->told = done;
    progress->total = total;
    progress->start = progress->shown = seconds();
    progress->terminal = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    return progress;
}

// "3d 04:05:06", "04:05", into 32 bytes
static void duration_text(char *text, double length)
{
    long total = length > 0 && length < 1e9 ? (long)length : 0;
    long days = total / 86400, hours = total / 3600 % 24, minutes = total / 60 % 60;
    if (days)
        snprintf(text, 32, "%ldd %02ld:%02ld:%02ld", days, hours, minutes, total % 60);
    else if (hours)
        snprintf(text, 32, "%ld:%02ld:%02ld", hours, minutes, total % 60);
    else
        snprintf(text, 32, "%02ld:%02ld", minutes, total % 60);
}

// "120/1000 steps  3.2 steps/s  04:35 left  loss 0.12"
static void status_text(const PvProgress *progress, double now, char *text, size_t size)
{
    char rate[64] = "", left[48] = "", total[32] = "";
    double passed = now - progress->start;
    double speed = passed > 0 ? (double)(progress->done - progress->first) / passed : 0;
    if (progress->total > 0)
        snprintf(total, sizeof total, "/%lld", (long long)progress->total);
    if (speed >= 1)
        snprintf(rate, sizeof rate, "  %.3g %ss/s", speed, progress->unit);
    else if (speed > 0)
        snprintf(rate, sizeof rate, "  %.3g s/%s", 1 / speed, progress->unit);
    if (speed > 0 && progress->total > progress->done) {
        char length[32];
        duration_text(length, (double)(progress->total - progress->done) / speed);
        snprintf(left, sizeof left, "  %s left", length);
    }
    snprintf(text, size, "%lld%s %ss%s%s%s%s", (long long)progress->done, total, progress->unit,
             rate, left, progress->note[0] ? "  " : "", progress->note);
}

static int terminal_width(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return 80;
}

static void show(PvProgress *progress, double now)
{
    enum { CELLS = 24 };
    char text[320], bar[CELLS + 3] = "";
    status_text(progress, now, text, sizeof text);
    progress->shown = now;
    progress->told = progress->done;
    if (!progress->terminal) {
        fprintf(stderr, "%s\n", text);
        return;
    }
    int width = terminal_width() - 1;
    if (progress->total > 0 && width > 60) {
        int full = (int)(progress->done * CELLS / progress->total);
        full = full < 0 ? 0 : full > CELLS ? CELLS : full;
        memset(bar, '#', (size_t)full);
        memset(bar + full, '.', (size_t)(CELLS - full));
        bar[CELLS] = ' ';
        bar[CELLS + 1] = 0;
        width -= CELLS + 1;
    }
    fprintf(stderr, "\r\033[K%s%.*s", bar, width > 0 ? width : 0, text);
    fflush(stderr);
    progress->bar = true;
}

void pv_progress_at(PvProgress *progress, int64_t done, const char *note)
{
    double now = seconds();
    progress->done = done;
    snprintf(progress->note, sizeof progress->note, "%s", note ? note : "");
    if (now - progress->shown >= (progress->terminal ? 0.1 : 10))
        show(progress, now);
}

void pv_progress_end(PvProgress *progress)
{
    if (!progress)
        return;
    if (progress->done != progress->told || progress->bar)
        show(progress, seconds());
    if (progress->bar)
        fputc('\n', stderr);
    free(progress->unit);
    free(progress);
}
