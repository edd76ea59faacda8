/** Names of images, as Docker reads them. */

/** The registry of an image name, `docker.io` when it names none (distribution's reference grammar). */
export function registryHostOf(image: string): string {
  const [first = '', ...rest] = image.split('/');
  const isHost = rest.length > 0 && (/[.:]/.test(first) || first === 'localhost');
  return isHost ? first.toLowerCase() : 'docker.io';
}

/** The name without its tag or digest, and that; `latest` when there is neither. */
export function splitReference(image: string): { readonly name: string; readonly reference: string } {
  const at = image.indexOf('@');
  if (at !== -1) {
    // with both, the digest decides
    return { name: image.slice(0, at).replace(/:[^/:]*$/, ''), reference: image.slice(at + 1) };
  }
  const [, name = image, tag = 'latest'] = /^(.*?)(?::([^/:]+))?$/.exec(image) ?? [];
  return { name, reference: tag };
}

const ECR_HOST = /^\d{12}\.dkr[.-]ecr(?:-fips)?\.[a-z0-9-]+\.(.+)$/;

/**
 * Whether a host of an image is the registry that a token is for: the very host, or another account or region under the
 * same domain and port.
 *
 * INVARIANT: never true for a domain of somebody else, whatever its name begins with: the token would go there.
 */
export function isSameRegistry(host: string, proxyEndpoint: string): boolean {
  const own = new URL(proxyEndpoint).host;
  if (loopbackAlike(host) === loopbackAlike(own)) return true;
  if (host === `${own}:${proxyEndpoint.startsWith('https:') ? 443 : 80}`) return true;
  const domain = ECR_HOST.exec(host)?.[1];
  return domain !== undefined && domain === ECR_HOST.exec(own)?.[1];
}

/** The engine and the server are on one machine, whose loopback has several names. */
function loopbackAlike(host: string): string {
  return host.replace(/^(?:localhost|127\.0\.0\.1|\[::1\])(?=:\d+$|$)/, 'localhost');
}
