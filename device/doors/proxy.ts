import { doorErrors } from './errors.ts'

/** Which proxy an address goes through, by the variables that curl and most programs know. Pure. */

export type Environment = Readonly<Record<string, string | undefined>>

/**
 * The proxy for an address: `https_proxy` or `HTTPS_PROXY` for https, `http_proxy` for http (upper case only where no
 * request could have set it: a CGI server hands a client's "Proxy:" header on as HTTP_PROXY), then `all_proxy`.
 * `no_proxy` names exceptions: `*`, a host, a `.domain` with all below it, each with an optional `:port`.
 * @throws TRANSPORT_PROXY for a proxy that is not http://
 */
export function proxyFor(url: URL, env: Environment): URL | undefined {
  const scheme = url.protocol === 'https:' ? 'https' : 'http'
  const cgi = env['REQUEST_METHOD'] !== undefined && scheme === 'http'
  const named =
    set(env[`${scheme}_proxy`]) ??
    (cgi ? undefined : set(env[`${scheme.toUpperCase()}_PROXY`])) ??
    set(env['all_proxy']) ??
    set(env['ALL_PROXY'])
  if (named === undefined || isExcepted(url, set(env['no_proxy']) ?? set(env['NO_PROXY']) ?? '')) return undefined
  const text = named.includes('://') ? named : `http://${named}`
  const proxy = URL.canParse(text) ? new URL(text) : undefined
  // Neither the words of the variable nor the user name: they may hold a password.
  if (proxy === undefined || proxy.protocol !== 'http:' || proxy.hostname === '')
    throw doorErrors.TRANSPORT_PROXY(`the proxy for ${scheme} addresses is not an http:// address`)
  return proxy
}

/** The value of `Proxy-Authorization`, when the proxy's address has a user name. */
export function proxyAuthorization(proxy: URL): string | undefined {
  if (proxy.username === '' && proxy.password === '') return undefined
  const pair = `${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`
  return `Basic ${Buffer.from(pair).toString('base64')}`
}

function set(value: string | undefined): string | undefined {
  return value === undefined || value.trim() === '' ? undefined : value.trim()
}

function isExcepted(url: URL, list: string): boolean {
  const host = url.hostname.replace(/^\[|\]$/g, '').toLowerCase()
  const port = url.port === '' ? (url.protocol === 'https:' ? '443' : '80') : url.port
  return list
    .split(/[\s,]+/)
    .filter((entry) => entry !== '')
    .some((entry) => {
      if (entry === '*') return true
      // More than one colon without brackets: an IPv6 address, which has no port.
      const bare = /^[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F:.]*$/.test(entry)
      const match = bare ? null : /^(\[[^\]]+\]|[^:]+):(\d{1,5})$/.exec(entry)
      const name = (match?.[1] ?? entry).replace(/^\[|\]$/g, '').toLowerCase()
      if (match?.[2] !== undefined && match[2] !== port) return false
      const domain = name.replace(/^\*?\./, '')
      return host === domain || host.endsWith(`.${domain}`)
    })
}
