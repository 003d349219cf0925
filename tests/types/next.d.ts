// The little of React, Node and Next.js that examples/nextjs uses, so that its files compile without any of them.

declare namespace React {
  type ReactNode = unknown;
}

declare module "react" {
  export function useEffect(effect: () => void | (() => void), dependencies: readonly unknown[]): void;
}

declare namespace JSX {
  type Element = unknown;
  interface ElementChildrenAttribute {
    children: unknown;
  }
  interface IntrinsicElements {
    html: { lang: string; children: unknown };
    head: { children: unknown };
    body: { children: unknown };
    button: { type: "button"; onClick: () => void; children: unknown };
    script: { async?: boolean; src?: string; dangerouslySetInnerHTML?: { __html: string } };
  }
}

declare module "node:crypto" {
  interface Hmac {
    update(text: string): Hmac;
    digest(encoding: "base64url"): string;
  }
  export function createHmac(algorithm: "sha256", key: string): Hmac;
}

declare const process: { env: Record<string, string | undefined> };
declare const Buffer: { from(text: string): { toString(encoding: "base64url"): string } };
