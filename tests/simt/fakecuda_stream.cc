/* The fake driver: streams, events, capture, graphs.
 *
 * A stream is a queue of operations. A wait for an event is an operation that carries out the other
 * stream's queue up to the event's record, so any moment of execution respects the order that was
 * asked for, and only that order.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <algorithm>
#include "fakecuda.h"

static CUstream_st legacy = {true, {}, nullptr, false}; // stream 0
static std::vector<CUstream_st *> streams;
static std::vector<Capture *> captures; // that have begun and not ended
static std::vector<CUevent_st *> events;

double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

uint32_t random_number(void)
{
    driver.random ^= driver.random << 13;
    driver.random ^= driver.random >> 7;
    driver.random ^= driver.random << 17;
    return (uint32_t)(driver.random >> 16);
}

/* ---- queues ---- */

static void step(CUstream_st *stream)
{
    Operation operation = std::move(stream->queue.front());
    stream->queue.pop_front();
    OpenMemory open;
    operation();
}

void drain(CUstream stream)
{
    if (!stream)
        stream = &legacy;
    while (!stream->queue.empty())
        step(stream);
}

// Everything that was queued; what was written beside an allocation is a fault.
void drain_all(void)
{
    drain(&legacy);
    for (CUstream_st *stream : streams)
        drain(stream);
    if (driver.fault == CUDA_SUCCESS && !check_guards())
        driver.fault = CUDA_ERROR_ILLEGAL_ADDRESS;
}

// After a call: now may be the time for some operations.
static void go_on(CUstream_st *stream)
{
    if (driver.timing == STREAMS_EAGER)
        drain(stream);
    while (driver.timing == STREAMS_RANDOM && random_number() % 3 == 0) {
        CUstream_st *some = streams[random_number() % streams.size()];
        if (some->queue.empty())
            return;
        step(some);
    }
}

static bool known(CUstream stream)
{
    return !stream || std::find(streams.begin(), streams.end(), stream) != streams.end();
}

static bool known_event(CUevent event)
{
    return std::find(events.begin(), events.end(), event) != events.end();
}

// The legacy stream waits for all others that are not non-blocking, and they for it.
static CUresult enqueue_legacy(const Operation &operation)
{
    for (CUstream_st *stream : streams) {
        if (!stream->blocking)
            continue;
        if (stream->capture) {
            stream->capture->broken = true;
            return refuse(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                          "the legacy stream is used while a blocking stream is captured");
        }
        drain(stream);
    }
    legacy.queue.push_back(operation);
    drain(&legacy);
    return CUDA_SUCCESS;
}

CUresult enqueue(CUstream stream, Operation operation)
{
    if (!known(stream))
        return refuse(CUDA_ERROR_INVALID_HANDLE, "this is not a stream");
    if (!stream)
        return enqueue_legacy(operation);
    if (Capture *capture = stream->capture) {
        if (capture->broken)
            return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        capture->nodes.push_back(std::move(operation));
        stream->unjoined = stream != capture->origin;
        return CUDA_SUCCESS;
    }
    stream->queue.push_back(std::move(operation));
    go_on(stream);
    return CUDA_SUCCESS;
}

CUresult unsafe_while_capturing(void)
{
    for (Capture *capture : captures)
        if (capture->mode == 0 ||
            (capture->mode == 1 && capture->thread == std::this_thread::get_id())) {
            capture->broken = true;
            return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                          "a call that is not permitted while a stream is captured");
        }
    return CUDA_SUCCESS;
}

/* ---- events ---- */

static CUresult record(CUevent event, CUstream stream)
{
    auto mark = std::make_shared<Mark>(Mark{stream, false, 0, stream ? stream->capture : nullptr});
    event->mark = mark;
    if (mark->capture) // order within a graph is that of recording
        return mark->capture->broken ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    return enqueue(stream, [mark] {
        mark->done = true;
        mark->seconds = now();
    });
}

static CUresult wait_captured(CUstream stream, const Mark &mark)
{
    Capture *capture = stream->capture ? stream->capture : mark.capture;
    if (!mark.capture || capture != mark.capture) {
        capture->broken = true;
        return refuse(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                      "a captured stream waits for an event from outside");
    }
    stream->capture = capture;
    if (mark.stream && mark.stream != stream)
        mark.stream->unjoined = false;
    stream->unjoined = stream != capture->origin;
    return CUDA_SUCCESS;
}

static void run_until(const std::shared_ptr<Mark> &mark)
{
    CUstream_st *stream = mark->stream ? mark->stream : &legacy;
    while (!mark->done && !stream->queue.empty())
        step(stream);
}

/* ---- capture ---- */

static CUresult end_capture(CUstream stream, CUgraph *graph)
{
    Capture *capture = stream->capture;
    CUresult error = capture->broken ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    for (CUstream_st *other : streams)
        if (other->capture == capture) {
            if (other->unjoined && !error)
                error = refuse(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                               "the capture ends with work that its stream does not wait for");
            other->capture = nullptr;
            other->unjoined = false;
        }
    captures.erase(std::find(captures.begin(), captures.end(), capture));
    *graph = error ? nullptr : new CUgraph_st{capture->nodes};
    delete capture;
    return error;
}

template <class Body> static CUresult with_stream(CUstream stream, Body body)
{
    Call call(Call::CONTEXT);
    if (call.error || !known(stream))
        return call.error ? call.error : CUDA_ERROR_INVALID_HANDLE;
    return body();
}

template <class Body> static CUresult with_event(CUevent event, Body body)
{
    Call call(Call::CONTEXT);
    if (call.error || !known_event(event))
        return call.error ? call.error : CUDA_ERROR_INVALID_HANDLE;
    return body();
}

extern "C" {
CUresult cuStreamCreate(CUstream *stream, unsigned flags)
{
    Call call(Call::CONTEXT);
    if (call.error || flags > 1)
        return call.error ? call.error : CUDA_ERROR_INVALID_VALUE;
    *stream = new CUstream_st{flags == 0, {}, nullptr, false};
    streams.push_back(*stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy_v2(CUstream stream)
{
    return with_stream(stream, [=]() -> CUresult {
        if (!stream || stream->capture)
            return CUDA_ERROR_INVALID_HANDLE;
        drain(stream);
        for (CUstream_st *other : streams) // they may wait for its events
            drain(other);
        streams.erase(std::find(streams.begin(), streams.end(), stream));
        delete stream;
        return driver.fault;
    });
}

CUresult cuStreamSynchronize(CUstream stream)
{
    return with_stream(stream, [=] {
        if (stream && stream->capture) {
            stream->capture->broken = true;
            return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                          "a stream is waited for while it is captured");
        }
        drain(stream);
        if (driver.fault == CUDA_SUCCESS && !check_guards())
            driver.fault = CUDA_ERROR_ILLEGAL_ADDRESS;
        return driver.fault;
    });
}

CUresult cuStreamQuery(CUstream stream)
{
    return with_stream(stream, [=] {
        if (stream && !stream->queue.empty()) {
            step(stream);
            return CUDA_ERROR_NOT_READY;
        }
        return driver.fault;
    });
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned)
{
    return with_stream(stream, [=] {
        if (!known_event(event))
            return CUDA_ERROR_INVALID_HANDLE;
        std::shared_ptr<Mark> mark = event->mark;
        if (!mark)
            return CUDA_SUCCESS;
        if ((stream && stream->capture) || mark->capture)
            return stream ? wait_captured(stream, *mark) : CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        return enqueue(stream, [mark] { run_until(mark); });
    });
}

CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    Call call(Call::CONTEXT);
    if (call.error || flags > 7)
        return call.error ? call.error : CUDA_ERROR_INVALID_VALUE;
    *event = new CUevent_st{(flags & 2) == 0, nullptr};
    events.push_back(*event);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event)
{
    return with_event(event, [=] {
        events.erase(std::find(events.begin(), events.end(), event));
        delete event;
        return CUDA_SUCCESS;
    });
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
    return with_event(
        event, [=] { return known(stream) ? record(event, stream) : CUDA_ERROR_INVALID_HANDLE; });
}

CUresult cuEventSynchronize(CUevent event)
{
    return with_event(event, [=] {
        if (event->mark && event->mark->capture)
            return CUDA_ERROR_CAPTURED_EVENT;
        if (event->mark)
            run_until(event->mark);
        return driver.fault;
    });
}

CUresult cuEventQuery(CUevent event)
{
    return with_event(event, [=] {
        if (!event->mark || event->mark->done)
            return driver.fault;
        CUstream_st *stream = event->mark->stream;
        if (stream && !stream->queue.empty())
            step(stream);
        return CUDA_ERROR_NOT_READY;
    });
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to)
{
    return with_event(from, [=] {
        if (!known_event(to) || !from->timing || !to->timing || !from->mark || !to->mark)
            return CUDA_ERROR_INVALID_HANDLE;
        if (!from->mark->done || !to->mark->done)
            return CUDA_ERROR_NOT_READY;
        *milliseconds = (float)((to->mark->seconds - from->mark->seconds) * 1e3);
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamBeginCapture_v2(CUstream stream, int mode)
{
    return with_stream(stream, [=] {
        if (!stream)
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        if (stream->capture || mode < 0 || mode > 2)
            return CUDA_ERROR_INVALID_VALUE;
        drain(stream);
        stream->capture = new Capture{stream, mode, std::this_thread::get_id(), {}, false};
        captures.push_back(stream->capture);
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamIsCapturing(CUstream stream, int *status)
{
    return with_stream(stream, [=] {
        *status = !stream || !stream->capture ? 0 : stream->capture->broken ? 2 : 1;
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph)
{
    return with_stream(stream, [=] {
        if (!stream || !stream->capture || stream->capture->origin != stream)
            return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
        return end_capture(stream, graph);
    });
}

/* ---- graphs ---- */

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long)
{
    Call call(Call::CONTEXT);
    if (call.error || !graph)
        return call.error ? call.error : CUDA_ERROR_INVALID_VALUE;
    *exec = new CUgraphExec_st{graph->nodes};
    return CUDA_SUCCESS;
}

CUresult cuGraphGetNodes(CUgraph graph, void **nodes, size_t *count)
{
    Call call(Call::CONTEXT);
    if (call.error || !graph || nodes)
        return call.error ? call.error : CUDA_ERROR_NOT_SUPPORTED;
    *count = graph->nodes.size();
    return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream)
{
    return with_stream(stream, [=] {
        CUresult error = exec ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        for (size_t i = 0; !error && i < exec->nodes.size(); i++)
            error = enqueue(stream, exec->nodes[i]);
        return error;
    });
}

CUresult cuGraphExecDestroy(CUgraphExec exec)
{
    Call call(Call::CONTEXT);
    delete exec;
    return call.error;
}

CUresult cuGraphDestroy(CUgraph graph)
{
    Call call(Call::CONTEXT);
    delete graph;
    return call.error;
}
}
