// A clock in a worker: a page in the background gets its own timers once a second or less, which would tear holes into a recording.
onmessage = ({ data: { id, delay } }) => setTimeout(() => postMessage(id), delay);
