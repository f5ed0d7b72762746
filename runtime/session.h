// What the commands that run a model share: the executor, the values of options, random streams,
// mounted weights.
#ifndef PV_SESSION_H
#define PV_SESSION_H

#include "runtime/call.h"
#include "runtime/options.h"
#include "runtime/weights.h"

typedef struct {
    // from the command line
    PvWords weights, sets;
    int64_t threads;
    bool profile;
    const char *level; // "0", "1", "2", or NULL
    const char *device; // "cpu", "cuda", "cuda:1", or NULL
    const char *cublaslt; // "on", "off", "auto" or NULL
    bool idle;          // nothing will run: no device is opened
    // made by pv_session_open
    const PvModel *model;
    PvExec *exec;
    PvConfig config; // of --set; a command may read a file into it before
    PvScalar *options;
    PvRandom *random;
    bool *loaded; // [instance_count]: weights were mounted
} PvSession;      // starts as {0}

// Flags that every such command has: --device, --threads, --profile, --level, --set.
#define PV_SESSION_FLAGS(session)                                                                  \
    {"--set", "NAME=VALUE", PV_FLAG_WORDS, &(session)->sets, "value of an option of the model"},   \
        {"--device", "WHERE", PV_FLAG_TEXT, &(session)->device,                                    \
         "cpu, cuda, or cuda:N (default: a GPU if there is one for this executable)"},             \
        {"--cublaslt", "on|off|auto", PV_FLAG_TEXT, &(session)->cublaslt,                          \
         "products by cuBLASLt where it is faster (default auto: if it is found)"},                \
        {"--threads", "N", PV_FLAG_INT, &(session)->threads,                                       \
         "threads to use (default: OMP_NUM_THREADS, or all cores)"},                               \
        {"--level", "N", PV_FLAG_TEXT, &(session)->level,                                          \
         "0 unfused, 1, 2 (default); needs an executable made with --unfused-too"},                \
    {                                                                                              \
        "--profile", NULL, PV_FLAG_BOOL, &(session)->profile, "time every kernel, print a table"   \
    }

// Makes the executor and the streams, and puts --set into `config` and the options of `stage`
// (NULL: the global ones). Opens no file.
bool pv_session_open(PvSession *session, const PvModel *model, const char *stage, uint64_t seed,
                     PvError *error);
void pv_session_close(PvSession *session); // prints the times if they were measured

// An error for settings that nothing asked for. `more` are names that the command knows itself.
bool pv_session_check_settings(PvSession *session, const char *stage, const PvWords *more,
                               PvError *error);

// Mounts --weights on the instances marked in `needed` ([instance_count]). Those marked in
// `may_miss` (or NULL) may be found in no file; all others must be, or the error names them.
// `command` is who needs them: "denoise".
bool pv_session_mount(PvSession *session, const char *command, const bool *needed,
                      const bool *may_miss, bool ema, PvError *error);

// Are all of the marked instances ([instance_count]) mounted? If not, bytes of those that are not.
bool pv_session_is_mounted(const PvSession *session, const bool *needed);
int64_t pv_session_missing_bytes(const PvSession *session, const bool *needed);

// ---- session_device.c ----

bool pv_model_has_cpu(const PvModel *model);
bool pv_model_has_cuda(const PvModel *model);
// Puts the executor where --device says; part of pv_session_open.
bool pv_session_device(PvSession *session, PvError *error);
// pv_memory_check in the memory of that device, of which what the executor has for activations is
// free to it.
bool pv_session_memory(const PvSession *session, const char *command, const PvMemoryItem *items,
                       uint32_t count, int64_t batch, PvError *error);
char *pv_session_where(const PvSession *session); // "2 threads", "GPU 0 (NAME)"; malloc'ed

// First values of one instance (PvParam.init).
void pv_instance_init(const PvModel *model, uint32_t instance, uint64_t seed, char *params);

// Index of a program (kind PV_PROGRAM) or of its gradient (PV_GRAD_OF); -1 with an error.
int pv_find_program(const PvModel *model, const char *name, PvEntryKind kind, PvError *error);

#endif
