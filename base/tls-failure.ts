/** What Node.js and OpenSSL say when the other side could not be identified, or does not speak TLS. Pure. */

/** @param code of the system's error */
export function isTlsFailure(code: string): boolean {
  return /^(CERT_|ERR_TLS_|ERR_SSL_|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|INVALID_CA|HOSTNAME_MISMATCH|EPROTO)/.test(code)
}

/**
 * The code for people, with the day that the clock shows where that is what decided: a clock that was lost is the usual
 * reason. The day and no more, so that the same failure keeps its words.
 */
export function tlsWords(code: string, wall: Date): string {
  const dated = code === 'CERT_NOT_YET_VALID' || code === 'CERT_HAS_EXPIRED'
  return dated ? `${code} by the clock of this machine, which shows ${wall.toISOString().slice(0, 10)}` : code
}
