// --device: where a model runs. By default on a GPU if the executable has kernels for one that is
// there, else on the CPU if it has kernels for that.
#include <stdlib.h>
#include <string.h>

#include "runtime/cublaslt.h"
#include "runtime/cuda_exec.h"
#include "runtime/session.h"

bool pv_model_has_cpu(const PvModel *model)
{
    for (uint32_t i = 0; i < model->kernel_count; i++)
        if (!model->kernels[i].fn)
            return false;
    return true;
}

bool pv_model_has_cuda(const PvModel *model)
{
    return model->cuda != NULL;
}

// "cuda" or "cuda:N"; -1: neither.
static int parse_gpu(const char *text)
{
    if (strcmp(text, "cuda") == 0)
        return 0;
    char *end;
    if (strncmp(text, "cuda:", 5) != 0 || text[5] < '0' || text[5] > '9')
        return -1;
    long index = strtol(text + 5, &end, 10);
    return *end || index > 1023 ? -1 : (int)index;
}

// --cublaslt: the library for the GPU that is in use.
static bool use_cublaslt(PvSession *session, PvError *error)
{
    const char *when = session->cublaslt ? session->cublaslt : "auto";
    PvGpu *gpu = session->exec->gpu;
    bool on = strcmp(when, "on") == 0;
    if (strcmp(when, "off") == 0)
        return true;
    PvError why = {0};
    gpu->lt = pv_lt_open(gpu->device, on ? error : &why);
    pv_error_free(&why);
    return gpu->lt || !on;
}

static bool open_gpu(PvSession *session, int index, PvError *error)
{
    PvDevice *device = pv_device_open(index, error);
    if (!device)
        return false;
    if (pv_cuda_check(session->model, device, error))
        return pv_exec_use(session->exec, device, error) && use_cublaslt(session, error);
    pv_device_close(device);
    return false;
}

static bool use_given(PvSession *session, PvError *error)
{
    const char *text = session->device;
    bool cpu = strcmp(text, "cpu") == 0;
    int index = parse_gpu(text);
    if (!cpu && index < 0)
        return pv_error(error, PV_USAGE, "--device is cpu, cuda or cuda:N, not '%s'", text);
    if (cpu ? pv_model_has_cpu(session->model) : pv_model_has_cuda(session->model))
        return cpu || open_gpu(session, index, error);
    pv_error(error, PV_MACHINE, "this executable has no kernels for %s", cpu ? "the CPU" : "GPUs");
    return pv_error_hint(error, "pvdmc --target cpu,cuda puts both into one executable");
}

bool pv_session_device(PvSession *session, PvError *error)
{
    const char *when = session->cublaslt;
    if (when && strcmp(when, "on") != 0 && strcmp(when, "off") != 0 && strcmp(when, "auto") != 0)
        return pv_error(error, PV_USAGE, "--cublaslt is on, off or auto, not '%s'", when);
    if (session->device)
        return use_given(session, error);
    const PvModel *model = session->model;
    bool cpu = pv_model_has_cpu(model);
    if (!pv_model_has_cuda(model))
        return cpu || pv_error(error, PV_MACHINE, "this executable has no kernels to run");
    PvError why = {0};
    if (open_gpu(session, 0, &why))
        return true;
    if (cpu) {
        if (pv_driver_is_there()) // a GPU that cannot be used is worth a word; none is not
            pv_warn("%s; running on the CPU", why.text);
        pv_error_free(&why);
        return true;
    }
    char *targets = pv_cuda_targets(model->cuda);
    pv_error(error, PV_MACHINE, "this executable has kernels for GPUs alone (%s), and %s", targets,
             why.text);
    pv_error_hint(error, "%s", why.hint ? why.hint : "pvdmc --target cpu,cuda makes one for both");
    free(targets);
    pv_error_free(&why);
    return false;
}

bool pv_session_memory(const PvSession *session, const char *command, const PvMemoryItem *items,
                       uint32_t count, int64_t batch, PvError *error)
{
    const PvExec *exec = session->exec;
    const PvGpu *gpu = exec->gpu;
    PvMemoryFree space = gpu ? pv_device_memory(gpu->device) : pv_memory_free();
    space.bytes += gpu ? gpu->arena_bytes + gpu->workspace_bytes
                       : exec->arena_bytes + exec->threads * exec->scratch_each;
    return pv_memory_check_in(space, command, items, count, batch, error);
}

char *pv_session_where(const PvSession *session)
{
    const PvGpu *gpu = session->exec->gpu;
    return gpu ? pv_printf("GPU %d (%s)", gpu->device->index, gpu->device->name)
               : pv_printf("%d threads", session->exec->threads);
}
