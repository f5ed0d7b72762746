// What a second executable, compiled with --dtype f64 -O0, makes of the same weights and inputs:
// it is run with files of both, and its results are read back.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/bench.h"
#include "runtime/file.h"
#include "runtime/safetensors.h"

static bool write_weights(const PvBenchCase *at, const char *path, PvError *error)
{
    const PvModel *model = at->session->model;
    const char *params = pv_exec_params(at->session->exec, error);
    if (!params)
        return false;
    bool *needed = pv_alloc(model->instance_count + 1u);
    pv_plan_instances(pv_bench_plan(at, 0, 0), needed);
    PvWriter *writer = pv_writer_new();
    for (uint32_t i = 0; i < model->param_count; i++) {
        const PvParam *param = &model->params[i];
        if (needed[param->instance])
            pv_writer_add(writer, param->name, param->type.dtype, param->type.rank, param->type.dim,
                          params + param->offset, param->type.dtype);
    }
    free(needed);
    return pv_writer_finish(writer, path, error);
}

static bool write_inputs(const PvBenchCase *at, const char *path, PvError *error)
{
    PvWriter *writer = pv_writer_new();
    for (size_t i = 0; i < at->inputs.count; i++)
        pv_writer_add_tensor(writer, at->inputs.items[i].name, at->inputs.items[i].tensor);
    return pv_writer_finish(writer, path, error);
}

// Its output goes nowhere; what it says of errors to stderr.
static bool run_quietly(char *const *words, PvError *error)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        if (freopen("/dev/null", "w", stdout))
            execv(words[0], words);
        _exit(127);
    }
    int status = 0;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    if (child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    return pv_error(error, PV_WRONG, "the reference '%s' failed", words[0]);
}

bool pv_bench_reference(PvBenchCase *at, const char *executable, PvTensorSet *set, PvError *error)
{
    if (at->kind == PV_MINIMIZE || at->kind == PV_CALL)
        return true;
    const char *base = getenv("TMPDIR");
    char *folder = pv_printf("%s/pvdm-bench-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(folder)) {
        pv_error_errno(error, "cannot make the folder %s", folder);
        free(folder);
        return false;
    }
    char *files[3] = {pv_join(folder, "weights.safetensors"), pv_join(folder, "in.safetensors"),
                      pv_join(folder, "out.safetensors")};
    char *words[] = {pv_strdup(executable),
                     pv_strdup(at->kind == PV_GRAD_OF ? "grad" : "run"),
                     pv_strdup(at->entry->name),
                     pv_strdup("--weights"),
                     files[0],
                     pv_strdup("--in"),
                     files[1],
                     pv_strdup("--out"),
                     files[2],
                     NULL};
    bool good = write_weights(at, files[0], error) && write_inputs(at, files[1], error) &&
                run_quietly(words, error) && pv_tensors_read(files[2], set, error);
    for (int i = 0; i < 3; i++)
        unlink(files[i]);
    rmdir(folder);
    for (int i = 0; words[i]; i++)
        free(words[i]);
    free(folder);
    return good;
}
