/* Occupying the other processor while requests stream, so that who asks and who answers share one.
 *
 * Who asks sleeps until the answer comes, and the scheduler then wakes it on a processor that idles, if there is
 * one. Where that is slow (in many a virtual machine the interrupt to a sleeping processor costs more than all the
 * rest of a request) polling saves one such wake-up of two. With two processors both can be saved: while a thread
 * of the lowest priority turns on the one, who asks and who answers wake each other on the other.
 *
 * It costs what polling does, a processor that nobody else wants, while requests follow each other closely.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <unistd.h>

/* Nanoseconds: */
#define DEAR 5000       /* that an answer takes where waking who asked is slow */
#define QUIET 500000    /* without a request, after which a stream has ended */
#define WARM 40000000   /* to turn, until the scheduler takes the processor for a busy one */
#define COOL 20000000   /* to rest, until it does not any more */
#define SHORT 5000      /* from one look at the clock to the next: we were running all the time */
#define GAP 200000      /* the same: we were not */
#define REST 5000000    /* to leave the processor to those who wanted it */
#define COUNTED 1000000 /* in which to count how often somebody else runs */
/* Requests: */
#define FEW 16    /* of one caller in a row that count as a stream, at first */
#define MANY 4096 /* the same, where it has not worked */
#define BULK 4    /* large ones in a row, which threads share */
/* Times: */
#define OFTEN 4 /* that somebody else runs, until that is the caller */
#define MOST_CHANGES 3

enum { NOTHING, WARMING, OCCUPIED, ENDING };
enum { AWAKE, ASLEEP, MOVED };
enum { NONE, WORKED, IN_VAIN }; /* the caller did not stay where it was wanted */

static int possible;         /* there are two processors, and a thread that can occupy one */
static cpu_set_t processors; /* both */
static pthread_t occupant, server;
static sem_t wanted;
static _Atomic int phase;
static _Atomic int state;       /* of the server */
static _Atomic uint64_t latest; /* when the last request of the stream came */
static _Atomic uint64_t rest;   /* until when not to occupy a processor */
static _Atomic int outcome;     /* of the last stream */

static uint32_t caller;      /* of the last request */
static int in_a_row;         /* requests of its that came while we polled, so from the other processor */
static int needed = FEW;     /* of those */
static int strangers;        /* requests of others, lately */
static int large;            /* requests in a row */
static uint64_t answer_cost; /* what an answer has taken lately, nanoseconds */

static void go_from(int before, int after)
{
	atomic_compare_exchange_strong(&phase, &before, after);
}

/* -- the thread --------------------------------------------------------------------------------------- */

static void bind(pthread_t thread, const cpu_set_t *where)
{
	pthread_setaffinity_np(thread, sizeof(*where), where);
}

static cpu_set_t other_processor(void)
{
	cpu_set_t other = processors;
	int here = sched_getcpu();

	if (here >= 0)
		CPU_CLR(here, &other);
	return other;
}

/* Has the server wake up on the other processor, if it sleeps now; whether it does. */
static int move_server(void)
{
	cpu_set_t other = other_processor();
	int expected = ASLEEP;

	if (!atomic_compare_exchange_strong(&state, &expected, MOVED))
		return 0;
	bind(server, &other);
	if (state != MOVED)
		bind(server, &processors);
	return 1;
}

static void change_sides(void)
{
	cpu_set_t other = other_processor();

	bind(pthread_self(), &other);
}

static long times_switched(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nivcsw + usage.ru_nvcsw;
}

/* Turns on the caller's processor until the scheduler takes it for busy; that saves as much as it costs. */
static void warm_up(uint64_t duration)
{
	uint64_t time = now(), end = time + duration;

	while (phase == WARMING && time < end && time < latest + QUIET) {
		sched_yield();
		time = now();
	}
	if (phase == WARMING && time >= end) {
		change_sides(); /* to the server's, which goes to the caller's */
		go_from(WARMING, OCCUPIED);
	}
}

/* Turns until the stream ends. */
static void stay(void)
{
	long switched = times_switched();
	uint64_t last, time = now(), pause = 0, counted = time;
	int moved = 0, changes = 0;

	outcome = WORKED;
	do {
		long more;

		if (!moved)
			moved = move_server();
		sched_yield();
		last = time;
		time = now();
		if (time - last < SHORT) /* nobody else has run here */
			continue;
		more = times_switched() - switched;
		if (time - last >= GAP) {
			if (more) {
				rest = time + REST;
				return;
			}
			pause = time; /* it was the machine that stood still */
		}
		if (more >= OFTEN) { /* the caller has come here */
			if (changes++ == MOST_CHANGES) {
				outcome = IN_VAIN;
				return;
			}
			change_sides();
			moved = 0;
			time = now();
		}
		if (more >= OFTEN || time - counted > COUNTED) {
			switched += more;
			counted = time;
		}
	} while (phase == OCCUPIED && time < (latest > pause ? latest : pause) + QUIET);
}

static void *occupy(void *nothing)
{
	uint64_t warm_until = 0;

	setpriority(PRIO_PROCESS, gettid(), 19);
	for (;;) {
		while (sem_wait(&wanted))
			;
		warm_up(now() < warm_until ? 0 : WARM);
		if (phase == OCCUPIED) {
			stay();
			warm_until = now() + COOL;
		}
		phase = NOTHING;
	}
	return nothing;
}

/* -- the server --------------------------------------------------------------------------------------- */

static void stop_occupying(void)
{
	go_from(WARMING, ENDING);
	go_from(OCCUPIED, ENDING);
	in_a_row = 0;
}

static void start_occupying(void)
{
	cpu_set_t other = other_processor(), now_allowed;

	in_a_row = 0;
	if (sched_getaffinity(0, sizeof(now_allowed), &now_allowed) || !CPU_EQUAL(&now_allowed, &processors))
		return; /* somebody has decided otherwise */
	bind(occupant, &other);
	strangers = 0;
	latest = now();
	phase = WARMING;
	sem_post(&wanted);
}

int better_sleep(void)
{
	return phase == OCCUPIED;
}

void note_sleep(void)
{
	if (phase == OCCUPIED) {
		latest = now();
		state = ASLEEP;
	}
}

void note_wakeup(void)
{
	if (state != AWAKE && atomic_exchange(&state, AWAKE) == MOVED)
		bind(server, &processors);
}

int wants_cost(void)
{
	return possible && phase == NOTHING;
}

void note_cost(uint64_t nanoseconds)
{
	if (nanoseconds < 20 * DEAR) /* else the machine stood still */
		answer_cost = (answer_cost * 7 + nanoseconds) / 8;
}

void note_size(uint32_t size)
{
	large = size >= LARGE ? large + 1 : 0;
	if (large >= BULK)
		stop_occupying();
}

void note_request(uint32_t pid, enum wait wait)
{
	int same = !pid || pid == caller; /* the kernel's own have none */

	if (!possible)
		return;
	if (pid)
		caller = pid;
	if (phase != NOTHING) {
		latest = now();
		strangers = same ? strangers - (strangers > 0) : strangers + 4;
		if (strangers >= 8)
			stop_occupying();
		return;
	}
	if (!same || wait == SLEPT)
		in_a_row = 0;
	else if (wait == POLLED)
		in_a_row++;
	if (outcome != NONE) {
		needed = outcome == WORKED ? FEW : needed < MANY ? needed * 2 : MANY;
		outcome = NONE;
	}
	if (in_a_row >= needed && answer_cost > DEAR && now() > rest)
		start_occupying();
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *allow_occupying(PyObject *self, PyObject *nothing)
{
	pthread_attr_t attributes;
	sigset_t all, before;

	if (possible || sysconf(_SC_NPROCESSORS_ONLN) != 2 || /* callers may run on any */
	    sched_getaffinity(0, sizeof(processors), &processors) || CPU_COUNT(&processors) != 2)
		return PyBool_FromLong(possible);
	server = pthread_self();
	sem_init(&wanted, 0, 0);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 << 10);
	sigfillset(&all); /* signals are for Python's threads */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	possible = pthread_create(&occupant, &attributes, occupy, NULL) == 0;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return PyBool_FromLong(possible);
}

PyMethodDef occupy_methods[] = {
	{"allow_occupying", allow_occupying, METH_NOARGS,
	 "Let the other one of two processors be occupied while requests stream; tell whether that can be."},
	{NULL, NULL, 0, NULL},
};
