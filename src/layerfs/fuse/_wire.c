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
 * - FALLOCATE, for which pyfuse3 has no handler;
 * - most requests are answered here, see _direct.c, and the rest goes on to libfuse.
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

#define REQUEST_CAPSULE "layerfs.fuse._wire.request"
#define MAX_READAHEAD (1 << 20)
#define MAX_BACKGROUND 64 /* requests that the kernel sends at once for reading ahead and writing back */

static struct fuse_lowlevel_ops original; /* pyfuse3's */
static struct fuse_lowlevel_ops changed;
static PyObject *fallocate_handler; /* called with (request, inode, mode, offset, length) */
static uint64_t init_unique;        /* the INIT request under way, 0 for none */
static uint32_t kernel_flags;       /* what the kernel offered */
static int killpriv_v2;             /* agreed on with the kernel */
static int hooked;                  /* pyfuse3's session went through here */
static int kills_set_id;            /* the request being handled is a write that takes set-id bits */

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

static void on_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
			 struct fuse_file_info *fi)
{
	PyObject *request, *result = NULL;

	(void)fi;
	request = fallocate_handler ? PyCapsule_New(req, REQUEST_CAPSULE, NULL) : NULL;
	if (request)
		result = PyObject_CallFunction(fallocate_handler, "OKiLL", request, (unsigned long long)ino, mode,
					       (long long)offset, (long long)length);
	if (!result) {
		if (PyErr_Occurred())
			PyErr_WriteUnraisable(fallocate_handler);
		fuse_reply_err(req, fallocate_handler ? EIO : EOPNOTSUPP);
	}
	Py_XDECREF(result);
	Py_XDECREF(request);
}

static const struct fuse_lowlevel_ops *change_operations(const struct fuse_lowlevel_ops *op, size_t size)
{
	memset(&original, 0, sizeof(original));
	memcpy(&original, op, size < sizeof(original) ? size : sizeof(original));
	changed = original;
	changed.init = on_init;
	changed.fallocate = on_fallocate;
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

/* -- requests and answers, as they go over /dev/fuse (linux/fuse.h) ------------------------------------ */

/* Without OPEN and OPENDIR there are no handles; ours would be the inode number, so it is put there. */
static void set_handle(const struct fuse_in_header *header, void *body)
{
	switch (header->opcode) {
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_WRITE:
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		*(uint64_t *)body = header->nodeid; /* the first member of all of them */
	}
}

/* The errno to answer at once, 0 for a request that has to be looked at.
 *
 * With ENOSYS the kernel stops asking. Handles have no state, so nothing is to be opened or released; what CREATE does,
 * MKNOD does without making a handle; a FLUSH has nothing to do, and nothing here can be interrupted. No file
 * here has an ioctl(2), but many are asked, whether they are a terminal (by each open() in Python, for one). */
int refusal(const struct fuse_in_header *header)
{
	switch (header->opcode) {
	case FUSE_OPEN:
	case FUSE_CREATE:
		return kernel_flags & FUSE_NO_OPEN_SUPPORT ? ENOSYS : 0;
	case FUSE_OPENDIR:
		return kernel_flags & FUSE_NO_OPENDIR_SUPPORT ? ENOSYS : 0;
	case FUSE_FLUSH:
	case FUSE_INTERRUPT:
		return ENOSYS;
	case FUSE_IOCTL:
		return ENOTTY;
	}
	return 0;
}

/* pyfuse3 gives a node's own number as the one that people see: see shown(). Requests about nodes where the two
 * differ are noted here until they are answered; where they do not fit, people see the other number. */
#define AT_A_TIME 256
static struct {
	uint64_t unique; /* 0: free */
	uint32_t opcode;
} renumbered[AT_A_TIME];
static unsigned noted;

static void note_number(const struct fuse_in_header *header, const void *body, size_t size)
{
	uint64_t node = header->nodeid;

	if (header->opcode == FUSE_LINK && size >= sizeof(struct fuse_link_in))
		node = ((const struct fuse_link_in *)body)->oldnodeid;
	else if (header->opcode != FUSE_SETATTR && header->opcode != FUSE_GETATTR)
		return;
	if (shown(node) == node)
		return;
	for (size_t i = 0; i < AT_A_TIME; i++)
		if (!renumbered[i].unique) {
			renumbered[i].unique = header->unique;
			renumbered[i].opcode = header->opcode;
			noted++;
			return;
		}
}

static void show_number(const struct fuse_out_header *header, struct iovec *payload)
{
	for (size_t i = 0; i < AT_A_TIME; i++)
		if (renumbered[i].unique == header->unique) {
			const int is_entry = renumbered[i].opcode == FUSE_LINK;
			struct fuse_attr *attr = is_entry ? &((struct fuse_entry_out *)payload->iov_base)->attr
							  : &((struct fuse_attr_out *)payload->iov_base)->attr;

			renumbered[i].unique = 0;
			noted--;
			if (!header->error && (char *)(attr + 1) <= (char *)payload->iov_base + payload->iov_len)
				attr->ino = shown(attr->ino);
			return;
		}
}

void look_at_request(const struct fuse_in_header *header, void *body, size_t size)
{
	kills_set_id = 0;
	note_number(header, body, size);
	if (header->opcode == FUSE_WRITE && size >= sizeof(struct fuse_write_in)) {
		kills_set_id = !!(((const struct fuse_write_in *)body)->write_flags & FUSE_WRITE_KILL_SUIDGID);
	} else if (header->opcode == FUSE_INIT) {
		init_unique = header->unique;
		kernel_flags = ((const struct fuse_init_in *)body)->flags;
	}
	set_handle(header, body);
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
	if (noted && header->unique) {
		struct iovec none = {NULL, 0};

		show_number(header, count > 1 ? &iov[1] : &none);
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

static PyObject *takes_set_id(PyObject *self, PyObject *nothing)
{
	return PyBool_FromLong(kills_set_id);
}

static PyObject *set_fallocate(PyObject *self, PyObject *handler)
{
	Py_INCREF(handler);
	Py_XSETREF(fallocate_handler, handler);
	Py_RETURN_NONE;
}

static PyObject *reply_error(PyObject *self, PyObject *args)
{
	PyObject *request;
	int error;
	fuse_req_t req;

	if (!PyArg_ParseTuple(args, "Oi", &request, &error))
		return NULL;
	req = PyCapsule_GetPointer(request, REQUEST_CAPSULE);
	if (!req)
		return NULL;
	if (PyCapsule_SetName(request, "answered")) /* libfuse frees the request: once is enough */
		return NULL;
	fuse_reply_err(req, error);
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{"is_active", is_active, METH_NOARGS, "Tell whether pyfuse3's session is served through this module."},
	{"has_killpriv", has_killpriv, METH_NOARGS,
	 "Tell whether HANDLE_KILLPRIV_V2 was agreed on with the kernel."},
	{"takes_set_id", takes_set_id, METH_NOARGS,
	 "Tell whether the request being handled is a write that clears set-id bits."},
	{"set_fallocate", set_fallocate, METH_O,
	 "Set what is called with (request, inode, mode, offset, length) for fallocate(2)."},
	{"reply_error", reply_error, METH_VARARGS, "Answer a request with an errno, 0 for success; once."},
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
		       PyModule_AddFunctions(module, times_methods) ||
		       PyModule_AddFunctions(module, unchanging_methods)))
		Py_CLEAR(module);
	return module;
}
