import { defineErrors } from '../../base/errors.ts'

export const doorErrors = defineErrors({
  TRANSPORT_ADDRESS: {
    family: 'usage',
    meaning: 'The address is not one that this device can fetch from.',
    next: 'Give an http, https, mqtt or mqtts address, or a path.',
  },
  TRANSPORT_WRONG_ANSWER: {
    family: 'transport',
    meaning: 'Something answered, but not with the file asked for: a login page, a proxy, another service.',
    next: 'Open the address in a browser on the same network; check for a captive portal or a wrong address.',
  },
  TRANSPORT_CHANGED: {
    family: 'transport',
    meaning: 'The file at the source changed while it was being fetched.',
    next: 'Start again; never replace a published bundle under the same name.',
  },
  TRANSPORT_MISSING: {
    family: 'transport',
    meaning: 'The server or file system has no such file.',
    next: 'Check the address or path, and that the release was published.',
  },
  TRANSPORT_REFUSED: {
    family: 'transport',
    meaning: 'The server or file system refuses to give this file.',
    next: 'Check access rights, and credentials if the server wants them.',
  },
  TRANSPORT_SERVER: {
    family: 'transport',
    meaning: 'The server kept answering with an error of its own.',
    next: 'Try later; what has arrived is kept.',
  },
  TRANSPORT_LOST: {
    family: 'transport',
    meaning: 'The connection could not be made, or broke again and again without progress.',
    next: 'Check the network; install again, what has arrived is kept.',
  },
  TRANSPORT_STALLED: {
    family: 'transport',
    meaning: 'The server kept sending nothing, or next to nothing.',
    next: 'Check the network; install again, what has arrived is kept.',
  },
  TRANSPORT_REDIRECT: {
    family: 'transport',
    meaning: 'The server redirects too often, to nowhere, or from https to http.',
    next: 'Give the final address, or repair the server.',
  },
  TRANSPORT_TLS: {
    family: 'transport',
    meaning: 'The server could not be identified over TLS.',
    next: 'Check the certificate, its authority on this device, and the clock; bundles are signed, plain http works too.',
  },
  TRANSPORT_PROXY: {
    family: 'transport',
    meaning: 'The proxy that the environment names cannot be used, or refused the connection.',
    next: 'Check http_proxy, https_proxy and no_proxy of the agent, and what the proxy allows.',
  },
  TRANSPORT_TOO_LARGE: {
    family: 'transport',
    meaning: 'The file is larger than the limit for what was asked.',
    next: 'Check the address; nothing of that kind is so large.',
  },
  TRANSPORT_NO_RANGES: {
    family: 'transport',
    meaning: 'The server cannot send parts of a file, and too much was sent again and again because of it.',
    next: 'Serve bundles from a server that supports range requests; every common one does.',
  },
  TRANSPORT_SHORT: {
    family: 'transport',
    meaning: 'The source has fewer bytes than are needed.',
    next: 'Fetch or copy the bundle again; it was cut off.',
  },
  TRANSPORT_FILE_FAILED: {
    family: 'transport',
    meaning: 'A file could not be read: the stick was pulled, or is damaged.',
    next: 'Plug it in again or use another stick; what has arrived is kept.',
  },
})
