/* What pyfuse3 leaves out between the kernel and Python.
 *
 * This module is loaded, with RTLD_GLOBAL, before pyfuse3, so that pyfuse3's calls of fuse_session_new()
 * and fuse_session_mount() come here first. The session then gets our changes to its operations, to what
 * is agreed on with the kernel at INIT, and to how requests are read and answers written:
 *
 * - DONT_MASK: the daemon applies the umask, because a default ACL overrules it;
 * - HANDLE_KILLPRIV_V2, which libfuse does not know yet: without it the kernel asks for the attribute
 *   security.capability before every single write(2). In return the daemon clears set-id bits when a
 *   write request says so;
 * - no OPEN, CREATE, OPENDIR, FLUSH and their RELEASEs: answered ENOSYS, the kernel stops sending them;
 * - CACHE_SYMLINKS; no ATOMIC_O_TRUNC (without OPEN a cut comes as SETATTR); no AUTO_INVAL_DATA (nobody
 *   else changes the files); no splicing of small requests;
 * - no ASYNC_DIO: the kernel drops cached pages when an O_DIRECT write begins, and once more when it ends, but the
 *   latter only if it waits for it itself (generic_file_direct_write). What was read into the cache in between
 *   would stay there, old;
 * - requests are answered through a table of our own, see _direct.c; INIT and its like go on to libfuse.
 *
 * Everything works without this module, with more requests.
 */

#define FUSE_USE_VERSION 312
#define _GNU_SOURCE
#include "_wire.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <string.h>

#define MAX_READAHEAD (1 << 20)
#define MAX_BACKGROUND 64 /* requests that the kernel sends at once for reading ahead and writing back */

static struct fuse_lowlevel_ops original; /* pyfuse3's */
static struct fuse_lowlevel_ops changed;
static uint64_t init_unique;        /* the INIT request under way, 0 for none */
static uint32_t kernel_flags;       /* what the kernel offered */
static int killpriv_v2;             /* agreed on with the kernel */
static int hooked;                  /* pyfuse3's session went through here */

static void *libfuse(const char *symbol)
{
	void *function = dlsym(RTLD_NEXT, symbol);
	const char *const names[] = {"libfuse3.so.4", "libfuse3.so.3"};

	for (size_t i = 0; !function && i < sizeof(names) / sizeof(*names); i++) {
		void *library = dlopen(names[i], RTLD_LAZY | RTLD_NOLOAD);
		if (library)
			function = dlsym(library, symbol);
	}
	return function;
}

/* -- operations ------------------------------------------------------------------------------------ */

static void on_init(void *userdata, struct fuse_conn_info *conn)
{
	const unsigned wanted = FUSE_CAP_DONT_MASK | FUSE_CAP_CACHE_SYMLINKS;

	original.init(userdata, conn);
	conn->want |= wanted & conn->capable;
	conn->want &= ~(FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_AUTO_INVAL_DATA |
			FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE |
			FUSE_CAP_ASYNC_DIO);
	conn->max_background = MAX_BACKGROUND;
	conn->congestion_threshold = MAX_BACKGROUND * 3 / 4;
	if (conn->max_readahead > MAX_READAHEAD)
		conn->max_readahead = MAX_READAHEAD;
}

static const struct fuse_lowlevel_ops *change_operations(const struct fuse_lowlevel_ops *op, size_t size)
{
	memset(&original, 0, sizeof(original));
	memcpy(&original, op, size < sizeof(original) ? size : sizeof(original));
	changed = original;
	changed.init = on_init;
	hooked = 1;
	return &changed;
}

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
struct fuse_session *fuse_session_new_versioned(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
						size_t op_size, struct libfuse_version *version,
						void *userdata)
{
	struct fuse_session *(*real)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t,
				     struct libfuse_version *, void *) = libfuse("fuse_session_new_versioned");

	if (!real)
		return NULL;
	return real(args, change_operations(op, op_size), sizeof(changed), version, userdata);
}
#else
struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
				      size_t op_size, void *userdata)
{
	struct fuse_session *(*real)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *) =
		libfuse("fuse_session_new");

	if (!real)
		return NULL;
	return real(args, change_operations(op, op_size), sizeof(changed), userdata);
}
#endif

/* -- INIT, and how requests are read ------------------------------------------------------------------ */

void look_at_request(const struct fuse_in_header *header, const void *body)
{
	if (header->opcode != FUSE_INIT)
		return;
	init_unique = header->unique;
	kernel_flags = ((const struct fuse_init_in *)body)->flags;
	if (!(kernel_flags & FUSE_NO_OPEN_SUPPORT)) {
		answer_by_pyfuse3(FUSE_OPEN);
		answer_by_pyfuse3(FUSE_CREATE);
	}
	if (!(kernel_flags & FUSE_NO_OPENDIR_SUPPORT))
		answer_by_pyfuse3(FUSE_OPENDIR);
}

static ssize_t write_answer(int fd, struct iovec *iov, int count, void *userdata)
{
	const struct fuse_out_header *header = iov[0].iov_base;

	(void)userdata;
	if (init_unique && header->unique == init_unique) {
		init_unique = 0;
		if (kernel_flags & FUSE_HANDLE_KILLPRIV_V2 && !header->error && count > 1 &&
		    iov[1].iov_len >= offsetof(struct fuse_init_out, flags) + sizeof(uint32_t)) {
			((struct fuse_init_out *)iov[1].iov_base)->flags |= FUSE_HANDLE_KILLPRIV_V2;
			killpriv_v2 = 1;
		}
	}
	return send_answer(fd, iov, count);
}

int fuse_session_mount(struct fuse_session *se, const char *mountpoint)
{
	static const struct fuse_custom_io io = {.read = read_request, .writev = write_answer};
	int (*real)(struct fuse_session *, const char *) = libfuse("fuse_session_mount");
	int result = real ? real(se, mountpoint) : -1;

	if (result == 0 && hooked) {
		int fd = fuse_session_fd(se);

		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); /* requests are read until none is left */
		fuse_session_custom_io(se, &io, fd);
	}
	return result;
}

/* -- the module ------------------------------------------------------------------------------------- */

static PyObject *is_active(PyObject *self, PyObject *nothing)
{
	return PyBool_FromLong(hooked);
}

static PyObject *has_killpriv(PyObject *self, PyObject *nothing)
{
	return PyBool_FromLong(killpriv_v2);
}

static PyMethodDef methods[] = {
	{"is_active", is_active, METH_NOARGS, "Tell whether pyfuse3's session is served through this module."},
	{"has_killpriv", has_killpriv, METH_NOARGS,
	 "Tell whether HANDLE_KILLPRIV_V2 was agreed on with the kernel."},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_wire",
	.m_size = -1,
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__wire(void)
{
	PyObject *module = PyModule_Create(&definition);

	if (module && (PyModule_AddFunctions(module, direct_methods) ||
		       PyModule_AddFunctions(module, answer_methods) ||
		       PyModule_AddFunctions(module, blocking_methods) ||
		       PyModule_AddFunctions(module, entry_methods) ||
		       PyModule_AddFunctions(module, known_methods) ||
		       PyModule_AddFunctions(module, loop_methods) ||
		       PyModule_AddFunctions(module, lost_methods) ||
		       PyModule_AddFunctions(module, times_methods)))
		Py_CLEAR(module);
	return module;
}
